// A quantized matrix as the inner loops read it, without tensors.
#pragma once
#include <cstdint>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

struct QuantizedView {
  explicit QuantizedView(const QuantizedMatrix& matrix);  // which must outlive it

  QuantizedFormat format;
  int64_t rows, columns;
  const void* codes;
  const float* scales;
  const float* lows = nullptr;           // int4
  const uint8_t* scale_codes = nullptr;  // nf4-double
  float offset = 0;                      // nf4-double
};

// w' of rows [row0, row1) and columns [column0, column1) into `values`, row by row without gaps.
void dequantize_rectangle(const QuantizedView& view, int64_t row0, int64_t row1, int64_t column0, int64_t column1,
                          float* values);

}  // namespace limbeck::kernels
