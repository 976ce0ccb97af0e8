// A quantized matrix as the inner loops read it, without tensors.
#pragma once
#include <cstdint>

#include "kernels/quantized/quantized_formula.h"

namespace limbeck::kernels {

// w' of rows [row0, row1) and columns [column0, column1) into `values`, row by row without gaps.
void dequantize_rectangle(const QuantizedView& view, int64_t row0, int64_t row1, int64_t column0, int64_t column1,
                          float* values);

}  // namespace limbeck::kernels
