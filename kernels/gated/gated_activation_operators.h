// What every backend of the gated activations shares: argument checks and output tensors. The Meta kernels are exactly
// these functions.
#pragma once
#include <ATen/core/Tensor.h>

#include <tuple>

#include "kernels/gated/gated_activation_loops.h"

namespace limbeck::kernels {

at::Tensor gated_output(GatedKind kind, const at::Tensor& gate, const at::Tensor& up);

// (grad_gate, grad_up), contiguous
std::tuple<at::Tensor, at::Tensor> gated_gradients(GatedKind kind, const at::Tensor& grad, const at::Tensor& gate,
                                                   const at::Tensor& up);

}  // namespace limbeck::kernels
