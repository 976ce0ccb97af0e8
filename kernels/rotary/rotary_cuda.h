// Launcher of the CUDA kernel of the rotary embedding. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/rotary/rotary_loops.h"

namespace limbeck::kernels {

// Heads of another tensor that turn as those of the RotaryArguments do; none where x is null.
struct MoreHeads {
  const void* x = nullptr;
  int64_t x_batch = 0, x_time = 0, x_head = 0;
  void* y = nullptr;
  int64_t heads = 0;
};

void launch_rotary(Storage storage, const RotaryArguments& args, const MoreHeads& more, int64_t positions,
                   cudaStream_t stream);

}  // namespace limbeck::kernels
