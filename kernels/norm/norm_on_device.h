// RMSNorm and LayerNorm on any device: what the loops and kernels are given, and the operators around them. A Device
// says how they run there:
//   static int64_t rows_per_block(int64_t rows, int64_t width);           // of the sums over rows; a fixed partition
//   static void forward(const NormForwardWork&);
//   static void backward(const NormBackwardWork&);
//   static void sum_blocks(Storage, const void* partial, int64_t blocks, int64_t width, void* out);
#pragma once
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "kernels/norm/norm_loops.h"
#include "kernels/norm/norm_operators.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {

inline const void* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}
inline void* mutable_data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr() : nullptr;
}
inline at::Tensor dense(const at::Tensor& tensor) { return tensor.defined() ? tensor.contiguous() : tensor; }

// The two hold what the pointers of `arguments` point to, but for the outputs. RMSNorm has neither bias nor mean.
struct NormForwardWork {
  NormForwardWork(const at::Tensor& in, const at::Tensor& scale, const at::Tensor& shift, const at::Tensor& y,
                  const at::Tensor& mean, const at::Tensor& rstd, double eps, bool unit_offset)
      : x(in),
        weight(dense(scale)),
        bias(dense(shift)),
        arguments{x.data,
                  x.stride,
                  weight.const_data_ptr(),
                  data_or_null(bias),
                  y.mutable_data_ptr(),
                  mutable_data_or_null(mean),
                  rstd.mutable_data_ptr(),
                  x.width,
                  eps,
                  unit_offset},
        storage(storage_of(in)) {}

  Rows x;
  at::Tensor weight, bias;
  NormForward arguments;
  Storage storage;
};

// The gradients that are undefined are not computed.
struct NormBackwardWork {
  NormBackwardWork(const at::Tensor& dy, const at::Tensor& in, const at::Tensor& scale, const at::Tensor& means,
                   const at::Tensor& rstds, bool unit_offset, const at::Tensor& grad_x, int64_t block_rows)
      : grad(dy),
        x(in),
        weight(dense(scale)),
        mean(dense(means)),
        rstd(dense(rstds)),
        rows_per_block(block_rows),
        blocks((x.count + block_rows - 1) / block_rows),
        arguments{grad.data,
                  grad.stride,
                  x.data,
                  x.stride,
                  weight.const_data_ptr(),
                  data_or_null(mean),
                  rstd.const_data_ptr(),
                  mutable_data_or_null(grad_x),
                  nullptr,
                  nullptr,
                  x.width,
                  unit_offset},
        storage(storage_of(in)) {}

  // Each block of rows has a row of partial sums of its own.
  at::Tensor partial_sums() const {
    return at::empty({blocks, x.width}, x.tensor.options().dtype(wide_type(x.tensor)));
  }

  Rows grad, x;
  at::Tensor weight, mean, rstd;
  int64_t rows_per_block, blocks;
  NormBackward arguments;
  Storage storage;
};

template <class Device>
struct NormOn {
  static std::tuple<at::Tensor, at::Tensor> rms_forward(const at::Tensor& x, const at::Tensor& weight, double eps,
                                                        bool unit_offset) {
    const c10::DeviceGuard guard(x.device());
    auto [y, rstd] = rms_norm_outputs(x, weight, eps, unit_offset);
    Device::forward(NormForwardWork(x, weight, {}, y, {}, rstd, eps, unit_offset));
    return {y, rstd};
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_forward(const at::Tensor& x, const at::Tensor& weight,
                                                                      const std::optional<at::Tensor>& bias,
                                                                      double eps) {
    const c10::DeviceGuard guard(x.device());
    auto [y, mean, rstd] = layer_norm_outputs(x, weight, bias, eps);
    Device::forward(NormForwardWork(x, weight, bias.value_or(at::Tensor()), y, mean, rstd, eps, false));
    return {y, mean, rstd};
  }

  static std::tuple<at::Tensor, at::Tensor> rms_backward(const at::Tensor& grad, const at::Tensor& x,
                                                         const at::Tensor& weight, const at::Tensor& rstd,
                                                         bool unit_offset, std::array<bool, 2> mask) {
    const c10::DeviceGuard guard(x.device());
    auto [grad_x, grad_weight] = rms_norm_gradients(grad, x, weight, rstd, unit_offset, mask);
    backward(grad, x, weight, {}, rstd, unit_offset, grad_x, grad_weight, {});
    return {grad_x, grad_weight};
  }

  static std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                       const at::Tensor& weight, const at::Tensor& mean,
                                                                       const at::Tensor& rstd,
                                                                       std::array<bool, 3> mask) {
    const c10::DeviceGuard guard(x.device());
    auto [grad_x, grad_weight, grad_bias] = layer_norm_gradients(grad, x, weight, mean, rstd, mask);
    backward(grad, x, weight, mean, rstd, false, grad_x, grad_weight, grad_bias);
    return {grad_x, grad_weight, grad_bias};
  }

  static void add_to(torch::Library& m) {
    m.impl("rms_norm_forward", rms_forward);
    m.impl("rms_norm_backward", rms_backward);
    m.impl("layer_norm_forward", layer_forward);
    m.impl("layer_norm_backward", layer_backward);
  }

 private:
  static void backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mean,
                       const at::Tensor& rstd, bool unit_offset, const at::Tensor& grad_x,
                       const at::Tensor& grad_weight, const at::Tensor& grad_bias) {
    const int64_t width = x.size(-1);
    NormBackwardWork work(grad, x, weight, mean, rstd, unit_offset, grad_x,
                          Device::rows_per_block(x.numel() / width, width));
    const at::Tensor weight_sums = grad_weight.defined() ? work.partial_sums() : at::Tensor();
    const at::Tensor bias_sums = grad_bias.defined() ? work.partial_sums() : at::Tensor();
    work.arguments.partial_weight = mutable_data_or_null(weight_sums);
    work.arguments.partial_bias = mutable_data_or_null(bias_sums);
    Device::backward(work);
    for (const auto& [sums, out] : {std::pair{weight_sums, grad_weight}, {bias_sums, grad_bias}}) {
      if (!out.defined()) continue;
      Device::sum_blocks(work.storage, sums.const_data_ptr(), work.blocks, width, out.mutable_data_ptr());
    }
  }
};

}  // namespace limbeck::kernels
