// Launcher of dropout's CUDA kernel. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/dropout/dropout_loops.h"

namespace limbeck::kernels {

void launch_dropout(Storage storage, const DropoutArguments& args, int64_t rows, cudaStream_t stream);

}  // namespace limbeck::kernels
