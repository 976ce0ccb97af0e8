#include "kernels/adamw/adamw_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/adamw/adamw_operators.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {
namespace {

void step(at::TensorList parameters, at::TensorList gradients, at::TensorList masters, at::TensorList first,
          at::TensorList second, int64_t number, double learning_rate, double beta1, double beta2, double epsilon,
          double weight_decay, double gradient_scale) {
  const c10::cuda::CUDAGuard guard(parameters.front().device());
  const AdamWLists lists{parameters, gradients, masters, first, second};
  check_adamw(lists, number);
  const AdamWWork work(lists, number, learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale);
  launch_adamw_step(work.arguments, work.tensors.data(), work.tensors.size(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor square_sums(at::TensorList xs) {
  const c10::cuda::CUDAGuard guard(xs.front().device());
  const at::Tensor out = square_sums_output(xs);
  const SquareSumsWork work(xs);
  launch_square_sums(work.storage, work.tensors.data(), work.tensors.size(), out.mutable_data_ptr<double>(),
                     c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

void accumulate(const at::Tensor& sum, const at::Tensor& x) {
  const c10::cuda::CUDAGuard guard(sum.device());
  check_accumulate(sum, x);
  const at::Tensor dense = x.contiguous();
  launch_accumulate(storage_of(dense), dense.const_data_ptr(), sum.mutable_data_ptr(), sum.numel(),
                    c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("adamw_step_", step);
  m.impl("square_sums", square_sums);
  m.impl("accumulate_", accumulate);
}

}  // namespace
}  // namespace limbeck::kernels
