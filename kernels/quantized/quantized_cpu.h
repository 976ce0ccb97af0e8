// What the bodies on the CPU share.
#pragma once
#include "kernels/quantized/quantized_operands.h"

namespace limbeck::kernels {

// w' of rows [row0, row1) and columns [column0, column1) into `values`, row by row without gaps.
void dequantize_rectangle(const QuantizedView& view, int64_t row0, int64_t row1, int64_t column0, int64_t column1,
                          float* values);

// Into c, which has no gaps. transposed: a [..., columns] -> [..., rows]; otherwise a [..., rows] -> [..., columns].
void quantized_product_into(const at::Tensor& c, const at::Tensor& a, const QuantizedMatrix& matrix, bool transposed,
                            const OptionalBias& bias);

// With a matrix for whose products rows of x are codes; the operands are checked.
at::Tensor dynamic_product(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias);

}  // namespace limbeck::kernels
