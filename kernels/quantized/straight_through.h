// A float weight W seen through a quantized format: in its place stands W', what the codes of quantize() stand for, to
// the bit. W' follows W by steps, which have no slope: the gradient of W' is W's as it comes, value by value ("straight
// through"), and scales and zeros count as constants. None of it is held back where codes end: scales follow the
// largest values of their row, group or block, so that those too lie within half a step of what stands for them (of
// nf4-double but for the rounding of its scales).
// Codes are made anew by each call, on the CPU alone.
#pragma once
#include <optional>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

// W' [rows, columns], rounded once to the dtype of W: float32, bfloat16 or float16.
at::Tensor seen_through_format(const at::Tensor& weight, QuantizedFormat format, at::ScalarType scales = at::kFloat);

// y = x W'^T + b with the bits of quantized_linear() on the codes, and its gradients of x and b; W' is never there
// whole, and what is kept for backward are x and the codes. x, W and b are of one dtype.
at::Tensor straight_through_linear(const at::Tensor& x, const at::Tensor& weight, QuantizedFormat format,
                                   const std::optional<at::Tensor>& bias = std::nullopt,
                                   at::ScalarType scales = at::kFloat);

// The same of rows that are sorted by group, each group with a matrix of its own (grouped_linear.h): weight
// [G, out, in], with the bits of grouped_quantized_linear().
at::Tensor straight_through_grouped(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends,
                                    QuantizedFormat format, at::ScalarType scales = at::kFloat);

}  // namespace limbeck::kernels
