// The loops of the product with a quantized matrix on plain pointers, without torch's headers.
#pragma once
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

struct QuantizedView;  // quantized_formula.h

// C [m, n] = A [m, k] B [k, n] + bias [n] or nullptr; B is the matrix, or its transpose. A and C have no gaps.
struct QuantizedProduct {
  Storage storage;  // of a, c and bias; not float64
  const void* a;
  const QuantizedView& b;
  void (*dequantize)(const QuantizedView&, int64_t row0, int64_t row1, int64_t column0, int64_t column1, float* values);
  const float *nf4_levels, *dynamic_levels;  // kNf4Levels and kDynamicLevels
  bool transposed;
  void* c;
  const void* bias;
  int64_t m, n, k;
};

struct QuantizedLoops {
  int64_t scratch_bytes;  // of one thread, whatever the shape
  // Rows [m0, m1) and columns [n0, n1) of C: one thread's share.
  void (*share)(const QuantizedProduct&, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch);
};

// Of a processor that multiplies bfloat16 the build of that name has bfloat16's body alone.
LIMBECK_BFLOAT16_LOOPS(QuantizedLoops, quantized_loops)

}  // namespace limbeck::kernels
