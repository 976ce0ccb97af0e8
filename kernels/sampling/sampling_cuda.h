// Launcher of the CUDA kernels of sampling. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/operator/storage.h"
#include "kernels/sampling/sampling_arguments.h"

namespace limbeck::kernels {

inline constexpr int64_t kMostSampledRows = 65535;      // of a grid
inline constexpr int64_t kMostSampled = (1 << 22) - 1;  // of a vocabulary: what the sums of its masses have room for

int64_t sampling_workspace_bytes(int64_t rows);

// `workspace` is zeros.
void launch_sampling(Storage storage, const SamplingArguments& arguments, int64_t rows, void* workspace,
                     cudaStream_t stream);

}  // namespace limbeck::kernels
