// Launcher of the CUDA kernels of sampling. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/operator/storage.h"
#include "kernels/sampling/sampling_arguments.h"
#include "kernels/sampling/sampling_plan.h"

namespace limbeck::kernels {

// `workspace` is sampling_workspace_bytes(rows) of zeros.
void launch_sampling(Storage storage, const SamplingArguments& arguments, int64_t rows, void* workspace,
                     cudaStream_t stream);

}  // namespace limbeck::kernels
