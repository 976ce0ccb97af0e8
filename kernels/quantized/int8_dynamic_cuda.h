// Launchers of the CUDA kernels for products with a matrix in int8-dynamic (quantized_linear.h). All pointers are
// device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/operator/storage.h"
#include "kernels/quantized/quantized_formula.h"
#include "kernels/quantized/row_steps.h"

namespace limbeck::kernels {

// Codes and scales of rows of x [count, columns], not float64 and without gaps; steps: row_steps.h.
void launch_row_codes(Storage storage, const void* x, int64_t count, int64_t columns, float steps, int8_t* codes,
                      float* scales, cudaStream_t stream);

// y [count, rows] of the codes and scales of x, and bias [rows] or nullptr; none with gaps.
struct Int8Sums {
  QuantizedView weight;
  const int8_t* codes;
  const float* scales;
  const void* bias;
  void* y;
  int64_t count;
};
// The sums too: a warp for each row of the weight and two of x.
void launch_int8_product(Storage storage, const Int8Sums& product, cudaStream_t stream);
// Of sums [count, rows] that are there already.
void launch_int8_values(Storage storage, const Int8Sums& product, const int32_t* sums, cudaStream_t stream);

}  // namespace limbeck::kernels
