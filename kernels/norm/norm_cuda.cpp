#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/norm/norm_cuda.h"
#include "kernels/norm/norm_operators.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {
namespace {

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream(); }

std::tuple<at::Tensor, at::Tensor> rms_norm_forward(const at::Tensor& x, const at::Tensor& weight, double eps,
                                                    bool unit_offset) {
  const c10::cuda::CUDAGuard guard(x.device());
  auto [y, rstd] = rms_norm_outputs(x, weight, eps, unit_offset);
  const Rows rows(x);
  const at::Tensor dense_weight = weight.contiguous();
  const NormForward args{rows.data,
                         rows.stride,
                         dense_weight.const_data_ptr(),
                         nullptr,
                         y.mutable_data_ptr(),
                         nullptr,
                         rstd.mutable_data_ptr(),
                         rows.width,
                         eps,
                         unit_offset};
  launch_rms_forward(storage_of(x), args, rows.count, stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_forward(const at::Tensor& x, const at::Tensor& weight,
                                                                  const std::optional<at::Tensor>& bias, double eps) {
  const c10::cuda::CUDAGuard guard(x.device());
  auto [y, mean, rstd] = layer_norm_outputs(x, weight, bias, eps);
  const Rows rows(x);
  const at::Tensor dense_weight = weight.contiguous();
  const at::Tensor dense_bias = bias.has_value() ? bias->contiguous() : at::Tensor();
  const NormForward args{rows.data,
                         rows.stride,
                         dense_weight.const_data_ptr(),
                         dense_bias.defined() ? dense_bias.const_data_ptr() : nullptr,
                         y.mutable_data_ptr(),
                         mean.mutable_data_ptr(),
                         rstd.mutable_data_ptr(),
                         rows.width,
                         eps,
                         false};
  launch_layer_forward(storage_of(x), args, rows.count, stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, mean, rstd};
}

// Sums over rows in a fixed order, as on the CPU.
class PartialSums {
 public:
  PartialSums(const at::Tensor& x, int64_t rows, int64_t width, bool wanted)
      : blocks_(row_blocks(rows)), width_(width), storage_(storage_of(x)) {
    if (wanted) sums_ = at::empty({blocks_, width}, x.options().dtype(wide_type(x)));
  }

  void* data() const { return sums_.defined() ? sums_.mutable_data_ptr() : nullptr; }

  void reduce_into(const at::Tensor& out) const {
    if (!sums_.defined()) return;
    launch_sum_blocks(storage_, sums_.const_data_ptr(), blocks_, width_, out.mutable_data_ptr(), stream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  at::Tensor sums_;
  int64_t blocks_;
  int64_t width_;
  Storage storage_;
};

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                     const at::Tensor& weight, const at::Tensor& rstd, bool unit_offset,
                                                     std::array<bool, 2> mask) {
  const c10::cuda::CUDAGuard guard(x.device());
  auto [grad_x, grad_weight] = rms_norm_gradients(grad, x, weight, rstd, unit_offset, mask);
  const Rows x_rows(x), grad_rows(grad);
  const at::Tensor dense_weight = weight.contiguous(), dense_rstd = rstd.contiguous();
  const PartialSums partial_weight(x, x_rows.count, x_rows.width, mask[1]);
  const NormBackward args{grad_rows.data,
                          grad_rows.stride,
                          x_rows.data,
                          x_rows.stride,
                          dense_weight.const_data_ptr(),
                          nullptr,
                          dense_rstd.const_data_ptr(),
                          mask[0] ? grad_x.mutable_data_ptr() : nullptr,
                          partial_weight.data(),
                          nullptr,
                          x_rows.width,
                          unit_offset};
  launch_rms_backward(storage_of(x), args, x_rows.count, stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  partial_weight.reduce_into(grad_weight);
  return {grad_x, grad_weight};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                   const at::Tensor& weight, const at::Tensor& mean,
                                                                   const at::Tensor& rstd, std::array<bool, 3> mask) {
  const c10::cuda::CUDAGuard guard(x.device());
  auto [grad_x, grad_weight, grad_bias] = layer_norm_gradients(grad, x, weight, mean, rstd, mask);
  const Rows x_rows(x), grad_rows(grad);
  const at::Tensor dense_weight = weight.contiguous(), dense_mean = mean.contiguous(), dense_rstd = rstd.contiguous();
  const PartialSums partial_weight(x, x_rows.count, x_rows.width, mask[1]);
  const PartialSums partial_bias(x, x_rows.count, x_rows.width, mask[2]);
  const NormBackward args{grad_rows.data,
                          grad_rows.stride,
                          x_rows.data,
                          x_rows.stride,
                          dense_weight.const_data_ptr(),
                          dense_mean.const_data_ptr(),
                          dense_rstd.const_data_ptr(),
                          mask[0] ? grad_x.mutable_data_ptr() : nullptr,
                          partial_weight.data(),
                          partial_bias.data(),
                          x_rows.width,
                          false};
  launch_layer_backward(storage_of(x), args, x_rows.count, stream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  partial_weight.reduce_into(grad_weight);
  partial_bias.reduce_into(grad_bias);
  return {grad_x, grad_weight, grad_bias};
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("rms_norm_forward", rms_norm_forward);
  m.impl("rms_norm_backward", rms_norm_backward);
  m.impl("layer_norm_forward", layer_norm_forward);
  m.impl("layer_norm_backward", layer_norm_backward);
}

}  // namespace
}  // namespace limbeck::kernels
