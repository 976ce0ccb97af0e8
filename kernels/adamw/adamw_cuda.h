// Launchers of the optimizer's CUDA kernels. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/adamw/adamw_loops.h"

namespace limbeck::kernels {

void launch_adamw_step(const AdamWArguments& arguments, const AdamWTensor* tensors, size_t count, cudaStream_t stream);
// One total for each run of kSquareRun elements of each tensor.
void launch_square_sums(Storage storage, const SquaredTensor* tensors, size_t count, double* totals,
                        cudaStream_t stream);
void launch_accumulate(Storage storage, const void* x, void* sum, int64_t count, cudaStream_t stream);

}  // namespace limbeck::kernels
