// Ranges for codes of 2 and 3 bits. A scale that covers the largest values of a group leaves most of the others one or
// two codes; one that lets the largest go is nearer to all of them together.
#pragma once
#include "kernels/quantized/learned_rounding.h"

namespace limbeck::kernels {

// As range_of(), of each group so small a part as leaves the least squared error of rounding to nearest; that of a
// column counts `importance` [columns] times, float64. Scales are rounded to the dtype.
at::Tensor fitted_range(const at::Tensor& weight, const at::Tensor& importance, QuantizedFormat format,
                        at::ScalarType scales);
// The range that the scales (and zeros) of a matrix of kInt4 cover: with it these are made again, to the bit where they
// are bfloat16 or float16.
at::Tensor range_behind(const QuantizedMatrix& matrix);

}  // namespace limbeck::kernels
