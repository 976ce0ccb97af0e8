// What every backend of sampling shares: argument checks, the ids (the Meta kernel is exactly that) and the description
// of the work.
#pragma once
#include <ATen/core/Tensor.h>

#include "kernels/operator/checks.h"
#include "kernels/sampling/sampling_arguments.h"

namespace limbeck::kernels {

at::Tensor sampled_ids(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed,
                       int64_t step, bool allow_nonfinite);

// Holds what the pointers of `arguments` point to.
struct SamplingWork {
  SamplingWork(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed, int64_t step,
               bool allow_nonfinite, const at::Tensor& ids);

  Rows rows;
  SamplingArguments arguments;
};

}  // namespace limbeck::kernels
