// The row loops of RMSNorm and LayerNorm on plain pointers, without torch's headers. The structs are also what the CUDA
// launchers take. Compute type: float32, or float64 for float64 storage.
#pragma once
#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

// x [rows, width] with a row stride, y contiguous; mean and rstd [rows] in the compute type. RMSNorm is where
// mean is null; it has no bias.
struct NormForward {
  const void* x;
  int64_t x_row;
  const void* weight;
  const void* bias;  // or null
  void* y;
  void* mean;
  void* rstd;
  int64_t width;
  double eps;
  bool unit_offset;  // multiply by 1 + weight
};

// grad_x contiguous or null. partial_weight (and partial_bias) [row blocks, width] in the compute type, or null.
struct NormBackward {
  const void* grad;
  int64_t grad_row;
  const void* x;
  int64_t x_row;
  const void* weight;
  const void* mean;
  const void* rstd;
  void* grad_x;
  void* partial_weight;
  void* partial_bias;
  int64_t width;
  bool unit_offset;
};

// Weight gradients are sums over rows. To give the same bits on any number of threads they are summed over fixed blocks
// of rows, then over the blocks in order; the partition depends on the number of rows alone.
inline int64_t rows_per_block(int64_t rows) {
  const int64_t share = (rows + 63) / 64;
  return share < 8 ? 8 : share;
}

struct NormLoops {
  void (*forward)(Storage, const NormForward&, int64_t row_begin, int64_t row_end);
  // The rows of one block, whose partial sums it overwrites.
  void (*backward)(Storage, const NormBackward&, int64_t row_begin, int64_t row_end, int64_t block);
  // out[columns] = the sum of partial [blocks, width] over the blocks, in order, rounded to the storage.
  void (*sum_blocks)(Storage, const void* partial, int64_t blocks, int64_t width, void* out, int64_t column_begin,
                     int64_t column_end);
};

LIMBECK_LOOPS(NormLoops, norm_loops)

}  // namespace limbeck::kernels
