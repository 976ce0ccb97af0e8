#include "kernels/sampling/sampling_cuda.h"

#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/sampling/sampling_operators.h"

namespace limbeck::kernels {
namespace {

at::Tensor sample(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed, int64_t step,
                  bool allow_nonfinite) {
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor ids = sampled_ids(logits, temperature, top_k, top_p, seed, step, allow_nonfinite);
  check_sampled_on_cuda(logits);
  const SamplingWork work(logits, temperature, top_k, top_p, seed, step, allow_nonfinite, ids);
  const at::Tensor workspace = at::zeros({sampling_workspace_bytes(ids.numel())}, logits.options().dtype(at::kByte));
  launch_sampling(storage_of(logits), work.arguments, ids.numel(), workspace.mutable_data_ptr(),
                  c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return ids;
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { m.impl("sample_ids", sample); }

}  // namespace
}  // namespace limbeck::kernels
