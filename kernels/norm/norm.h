// RMSNorm and LayerNorm over the last dimension. Statistics and the affine step run in float32 and the result is
// rounded once to the dtype of `x`; weight and bias must have that same dtype (no silent mixing).
#pragma once
#include <ATen/core/Tensor.h>
#include <optional>

namespace limbeck::kernels {

// x [..., D], weight [D] -> [..., D]. unit_offset: multiply by (1 + weight), as Gemma stores it.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, bool unit_offset = false);

// x [..., D], weight [D], bias [D] or none -> [..., D]
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, double eps);

}  // namespace limbeck::kernels
