// Launcher of the CUDA kernel of the rotary embedding. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/rotary/rotary_loops.h"

namespace limbeck::kernels {

void launch_rotary(Storage storage, const RotaryArguments& args, int64_t positions, cudaStream_t stream);

}  // namespace limbeck::kernels
