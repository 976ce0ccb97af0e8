// The loops of what codes stand for, row by row, on plain pointers, without torch's headers.
#pragma once
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"

namespace limbeck::kernels {

struct QuantizedView;  // quantized_formula.h

// Rows [row0, row1) and columns [column0, column1) of a matrix, and where the values go: without gaps.
struct Unpacking {
  const QuantizedView& matrix;
  const float *nf4_levels, *dynamic_levels;  // kNf4Levels and kDynamicLevels
  int64_t row0, row1, column0, column1;
  float* values;
};

struct DequantizeLoops {
  void (*rectangle)(const Unpacking&);
};

LIMBECK_LOOPS(DequantizeLoops, dequantize_loops)

}  // namespace limbeck::kernels
