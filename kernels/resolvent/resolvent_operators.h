// The parts of the resolvent that every backend shares: argument checks and output tensors. The Meta kernels are these
// functions, with the scratch of a planned GPU (resolvent_plan.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace limbeck::kernels {

// g, and where `keep` says so in float64 what the gradients start from: the Green functions from the left and, unless
// causal, from the right; empty else. Here z has the leading dimensions of a.
std::tuple<at::Tensor, at::Tensor, at::Tensor> resolvent_outputs(const at::Tensor& a, const at::Tensor& b,
                                                                 const at::Tensor& c, const at::Tensor& z, bool causal,
                                                                 const std::optional<at::Tensor>& documents, bool keep);

// The gradients of a, b, c and z.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> resolvent_gradients(
    const at::Tensor& grad, const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
    bool causal, const std::optional<at::Tensor>& documents, const at::Tensor& left, const at::Tensor& right);

// g and the next state.
std::tuple<at::Tensor, at::Tensor> continued_resolvent_outputs(const at::Tensor& a, const at::Tensor& b,
                                                               const at::Tensor& c, const at::Tensor& z,
                                                               const at::Tensor& state);

}  // namespace limbeck::kernels
