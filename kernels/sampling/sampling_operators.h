// What every backend of sampling shares: argument checks, the ids, what takes memory beside them, and the description
// of the work.
#pragma once
#include <ATen/core/Tensor.h>

#include "kernels/operator/checks.h"
#include "kernels/sampling/sampling_arguments.h"

namespace limbeck::kernels {

at::Tensor sampled_ids(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed,
                       int64_t step, bool allow_nonfinite);

// CUDA has room for so many rows and so large a vocabulary alone.
void check_sampled_on_cuda(const at::Tensor& logits);
// On the CPU and on meta: the first of the greatest of each row, by ATen's vectors.
void greatest_ids(const at::Tensor& logits, bool allow_nonfinite, const at::Tensor& ids);

// Holds what the pointers of `arguments` point to.
struct SamplingWork {
  SamplingWork(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed, int64_t step,
               bool allow_nonfinite, const at::Tensor& ids);

  Rows rows;
  SamplingArguments arguments;
};

}  // namespace limbeck::kernels
