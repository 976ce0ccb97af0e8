#include "kernels/dropout/dropout_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/dropout/dropout_operators.h"

namespace limbeck::kernels {
namespace {

at::Tensor dropout_on_cuda(const at::Tensor& x, const at::Tensor& tokens, int64_t key, double rate) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor out = dropout_output(x, tokens, key, rate);
  const DropoutWork work(x, tokens, key, rate, out);
  launch_dropout(storage_of(x), work.arguments, work.rows.count, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { m.impl("dropout", dropout_on_cuda); }

}  // namespace
}  // namespace limbeck::kernels
