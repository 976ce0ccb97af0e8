#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/rotary/rotary_cuda.h"
#include "kernels/rotary/rotary_operators.h"

namespace limbeck::kernels {
namespace {

at::Tensor rotate(const char* op, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool inverse) {
  const c10::cuda::CUDAGuard guard(x.device());
  const at::Tensor y = rotary_output(op, x, cos, sin);
  const RotaryWork work(x, cos, sin, y, inverse);
  launch_rotary(storage_of(x), work.arguments, work.positions, c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

at::Tensor rotate_forward(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return rotate("rotary_embedding", x, cos, sin, false);
}
at::Tensor rotate_backward(const at::Tensor& grad, const at::Tensor& cos, const at::Tensor& sin) {
  return rotate("rotary_embedding_backward", grad, cos, sin, true);
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("rotary_embedding", rotate_forward);
  m.impl("rotary_embedding_backward", rotate_backward);
}

}  // namespace
}  // namespace limbeck::kernels
