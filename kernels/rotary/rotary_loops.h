// The loops of the rotary embedding on plain pointers, without torch's headers; the CUDA launcher takes the same
// struct.
#pragma once
#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

// x [batch, time, heads, width] with strides and a contiguous last dimension, y the same shape, contiguous;
// cos and sin float32 [batch or 1, time, half] contiguous, sharing cos_batch (0 when the batch shares one table).
struct RotaryArguments {
  const void* x;
  int64_t x_batch, x_time, x_head;
  const float* cos;
  const float* sin;
  int64_t cos_batch;
  void* y;
  int64_t time, heads, width, half;
  bool inverse;  // rotate by the negative angle: the gradient
};

struct RotaryLoops {
  // Positions are batch * time + t.
  void (*rotate)(Storage, const RotaryArguments&, int64_t position_begin, int64_t position_end);
};

LIMBECK_LOOPS(RotaryLoops, rotary_loops)

}  // namespace limbeck::kernels
