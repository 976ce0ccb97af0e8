// act(gate) * up in one pass: SwiGLU and its GELU sibling. float32 inside, one rounding to the dtype of the inputs.
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

// gate, up [..., F]: same shape and dtype; rows may be strided (the two halves of one fused projection).
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);      // silu(gate) * up
at::Tensor geglu_tanh(const at::Tensor& gate, const at::Tensor& up);  // gelu_tanh(gate) * up

}  // namespace limbeck::kernels
