// What the bodies of the quantized operators (CPU, CUDA, meta) share: checks, levels, and the signatures of
//   limbeck::quantize_weight           -> parts
//   limbeck::dequantize_rows           -> float32 [count, columns]
//   limbeck::quantized_linear          -> y, with autograd for x and the bias
//   limbeck::quantized_linear_backward -> dx
#pragma once
#include <array>
#include <optional>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

using OptionalBias = std::optional<at::Tensor>;

// The matrix of parts that an operator was given: their number, dtypes, shapes and one device are checked.
QuantizedMatrix checked_matrix(const char* op, at::TensorList parts, std::string_view format, int64_t rows,
                               int64_t columns);
void check_rows(const QuantizedMatrix& matrix, int64_t row, int64_t count);
// x [..., columns] of a floating dtype on the device of the matrix, bias [rows] of its dtype.
void check_quantized_linear(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias);
// dy [..., rows]
void check_quantized_backward(const at::Tensor& dy, const QuantizedMatrix& weight);

// The 16 levels of nf4, ascending.
inline constexpr std::array<float, 16> kNf4Levels = {
    -1.0F,         -0.696192801F, -0.525073051F, -0.394917488F, -0.284441382F, -0.18477343F, -0.0910500363F, 0.0F,
    0.0795802996F, 0.160930201F,  0.246112302F,  0.337915242F,  0.440709829F,  0.562617004F, 0.722956836F,   1.0F};
// The 256 levels of the dynamic map, ascending: 7 decades, each with twice the levels of the one below.
const std::array<float, 256>& dynamic_levels();

// The CUDA bodies: compositions of ATen operators, some rows at a time. They run on any device (tests do, on the CPU).
at::Tensor composed_dequantize_rows(const QuantizedMatrix& matrix, int64_t row, int64_t count);
at::Tensor composed_quantized_linear(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias);
at::Tensor composed_quantized_backward(const at::Tensor& dy, const QuantizedMatrix& weight);

}  // namespace limbeck::kernels
