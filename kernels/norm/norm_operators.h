// The parts of RMSNorm and LayerNorm that every backend shares: argument checks and output tensors. A Meta kernel is
// exactly these functions, so its shapes and dtypes cannot drift from the real ones.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace limbeck::kernels {

// Each checks its arguments and allocates (y, rstd) or (y, mean, rstd); statistics have the leading shape of x.
std::tuple<at::Tensor, at::Tensor> rms_norm_outputs(const at::Tensor& x, const at::Tensor& weight, double eps,
                                                    bool unit_offset);
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_outputs(const at::Tensor& x, const at::Tensor& weight,
                                                                  const std::optional<at::Tensor>& bias, double eps);

// Each checks its arguments and allocates the gradients that the mask asks for; the others stay undefined.
std::tuple<at::Tensor, at::Tensor> rms_norm_gradients(const at::Tensor& grad, const at::Tensor& x,
                                                      const at::Tensor& weight, const at::Tensor& rstd,
                                                      bool unit_offset, std::array<bool, 2> mask);
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_gradients(const at::Tensor& grad, const at::Tensor& x,
                                                                    const at::Tensor& weight, const at::Tensor& mean,
                                                                    const at::Tensor& rstd, std::array<bool, 3> mask);

}  // namespace limbeck::kernels
