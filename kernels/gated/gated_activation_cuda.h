// Launchers of the CUDA kernels of the gated activations. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/gated/gated_activation_loops.h"

namespace limbeck::kernels {

void launch_gated_forward(Storage storage, const GatedForward& args, int64_t rows, cudaStream_t stream);
void launch_gated_backward(Storage storage, const GatedBackward& args, int64_t rows, cudaStream_t stream);

}  // namespace limbeck::kernels
