// Launchers of the CUDA kernels of quantized matrices. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/operator/storage.h"
#include "kernels/quantized/quantized_formula.h"

namespace limbeck::kernels {

// w' of rows [row, row + count), rounded once to the storage (not float64), into `values` without gaps.
void launch_dequantize(const QuantizedView& weight, int64_t row, int64_t count, Storage storage, void* values,
                       cudaStream_t stream);

// w' of rows ids[0 .. count) in the same way; of an id that is no row, zeros.
void launch_lookup(const QuantizedView& weight, const int64_t* ids, int64_t count, Storage storage, void* values,
                   cudaStream_t stream);

// y [count, rows] = x [count, columns] W'^T + bias [rows] or nullptr, none with gaps, count at most kFewRows. W'
// is rounded once to the storage, sums are float32 in one order.
struct FewRowsProduct {
  QuantizedView weight;
  const void* x;
  const void* bias;
  void* y;
  int64_t count;
};
void launch_few_rows_product(Storage storage, const FewRowsProduct& product, cudaStream_t stream);

}  // namespace limbeck::kernels
