// Launchers of the CUDA kernels of RMSNorm and LayerNorm. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/norm/norm_loops.h"

namespace limbeck::kernels {

void launch_norm_forward(Storage storage, const NormForward& args, int64_t rows, cudaStream_t stream);

// grad_x and the partial sums over blocks of rows, each where its pointer is not null.
void launch_norm_backward(Storage storage, const NormBackward& args, int64_t rows, int64_t rows_per_block,
                          cudaStream_t stream);

// out[width] = the sum of partial [blocks, width] over the blocks, in order.
void launch_sum_blocks(Storage storage, const void* partial, int64_t blocks, int64_t width, void* out,
                       cudaStream_t stream);

}  // namespace limbeck::kernels
