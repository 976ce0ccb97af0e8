// The row loops of dropout on plain pointers, without torch's headers; the CUDA launcher takes the same struct.
#pragma once
#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"
#include "kernels/random/counter_bits.h"

namespace limbeck::kernels {

// x [rows, width] with a row stride, out contiguous.
struct DropoutArguments {
  const void* x;
  int64_t x_row;
  void* out;
  int64_t width;
  const int64_t* tokens;  // [rows]
  uint64_t key;
  uint32_t threshold;  // rate 2^32: an element whose bits are below is zero
  double scale;        // 1 / (1 - rate)
};

// 64 bits decide on two elements, the lower half on the first of them.
LIMBECK_FORMULA uint64_t row_key(uint64_t key, int64_t token) {
  return counter_bits(key, static_cast<uint64_t>(token));
}
LIMBECK_FORMULA uint64_t pair_bits(uint64_t row_key, int64_t pair) {
  return counter_bits(row_key, static_cast<uint64_t>(pair));
}

struct DropoutLoops {
  void (*drop)(Storage, const DropoutArguments&, int64_t row_begin, int64_t row_end);
};

LIMBECK_LOOPS(DropoutLoops, dropout_loops)

}  // namespace limbeck::kernels
