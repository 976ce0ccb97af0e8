// The loops of products with a matrix in int8-dynamic (quantized_linear.h) on plain pointers, without torch's headers.
#pragma once
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"
#include "kernels/quantized/row_steps.h"

namespace limbeck::kernels {

struct QuantizedView;  // quantized_formula.h

// y [m, n] of the codes and scales of x [m, k] and of the matrix [n, k] in int8; only rows of codes may have gaps.
struct Int8Product {
  const int8_t* codes;
  int64_t stride;  // of them
  const float* scales;
  const QuantizedView& weight;
  Storage storage;  // of y and bias
  void* y;
  const void* bias;  // or nullptr
  int64_t m, n, k;
};

struct Int8DynamicLoops {
  // Codes and scales of rows of x [count, width], whose largest magnitudes are so many steps (row_steps.h).
  void (*quantize_rows)(Storage storage, const void* x, int64_t count, int64_t width, float steps, int8_t* codes,
                        float* scales);
  // Rows [m0, m1) and columns [n0, n1) of y: one thread's share. `scratch`: as below, at a cache line.
  void (*share)(const Int8Product&, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch);
  int64_t scratch_bytes;
};

LIMBECK_TILE_LOOPS(Int8DynamicLoops, int8_dynamic_loops)

}  // namespace limbeck::kernels
