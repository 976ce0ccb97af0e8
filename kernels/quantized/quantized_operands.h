// What the bodies of the quantized operators (CPU, CUDA, meta) share: checks and the signatures of
//   limbeck::quantize_weight           -> parts
//   limbeck::dequantize_rows           -> float32 [count, columns]
//   limbeck::quantized_linear          -> y, with autograd for x and the bias
//   limbeck::quantized_linear_backward -> dx
//   limbeck::quantized_rows            -> [..., columns] of the dtype asked for
#pragma once
#include <optional>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

using OptionalBias = std::optional<at::Tensor>;

// The matrix of parts that an operator was given: their number, dtypes, shapes and one device are checked.
QuantizedMatrix checked_matrix(const char* op, at::TensorList parts, std::string_view format, int64_t rows,
                               int64_t columns);
// Of one matrix (count 0), or of a stack of so many (quantized_stack.h).
void check_parts(const char* op, at::TensorList parts, QuantizedFormat format, int64_t count, int64_t rows,
                 int64_t columns);
void check_rows(const QuantizedMatrix& matrix, int64_t row, int64_t count);
// x [..., columns] of a floating dtype on the device of the matrix, bias [rows] of its dtype.
void check_quantized_linear(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias);
// dy [..., rows]
void check_quantized_backward(const at::Tensor& dy, const QuantizedMatrix& weight);

// Of the ids' shape and [columns], not filled; dtypes and devices are checked, the ids' values are not.
at::Tensor empty_rows(const at::Tensor& ids, const QuantizedMatrix& matrix, at::ScalarType dtype);

// The pointers of a checked matrix, which must outlive them.
QuantizedView view_of(const QuantizedMatrix& matrix);

}  // namespace limbeck::kernels
