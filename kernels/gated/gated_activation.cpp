// Schemas, checks, Meta kernels and derivatives of SwiGLU and GeGLU-tanh.
#include "kernels/gated/gated_activation.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/gated/gated_activation_operators.h"
#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"

namespace limbeck::kernels {
namespace {

void check_pair(const char* op, const at::Tensor& gate, const at::Tensor& up) {
  check_floating(op, "gate", gate);
  TORCH_CHECK(gate.dim() >= 1, "[", op, "] gate is ", described(gate), ", wanted [..., F]");
  check_matches(op, "up", up, "gate", gate);
  check_same_shape(op, "up", up, "gate", gate);
}

}  // namespace

at::Tensor gated_output(GatedKind kind, const at::Tensor& gate, const at::Tensor& up) {
  check_pair(kind == GatedKind::kSwiGlu ? "swiglu" : "geglu_tanh", gate, up);
  return at::empty_symint(gate.sym_sizes(), gate.options());
}

std::tuple<at::Tensor, at::Tensor> gated_gradients(GatedKind kind, const at::Tensor& grad, const at::Tensor& gate,
                                                   const at::Tensor& up) {
  const char* op = kind == GatedKind::kSwiGlu ? "swiglu_backward" : "geglu_tanh_backward";
  check_pair(op, gate, up);
  check_matches(op, "the gradient", grad, "gate", gate);
  check_same_shape(op, "the gradient", grad, "gate", gate);
  return {at::empty_symint(gate.sym_sizes(), gate.options()), at::empty_symint(gate.sym_sizes(), gate.options())};
}

namespace {

using Forward = at::Tensor(const at::Tensor&, const at::Tensor&);
using Backward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&);

template <GatedKind kind>
const auto& forward_operator() {
  static const auto op =
      typed_operator<Forward>(kind == GatedKind::kSwiGlu ? "limbeck::swiglu" : "limbeck::geglu_tanh");
  return op;
}

template <GatedKind kind>
const auto& backward_operator() {
  static const auto op = typed_operator<Backward>(kind == GatedKind::kSwiGlu ? "limbeck::swiglu_backward"
                                                                             : "limbeck::geglu_tanh_backward");
  return op;
}

template <GatedKind kind>
struct GatedFunction : public torch::autograd::Function<GatedFunction<kind>> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate, const at::Tensor& up) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({gate, up});
    return forward_operator<kind>().call(gate, up);
  }

  // Both gradients come out of one pass; asking for one alone is rare (a frozen gate) and not worth a second kernel.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    auto [grad_gate, grad_up] = backward_operator<kind>().call(grads[0], saved[0], saved[1]);
    return {grad_gate, grad_up};
  }
};

template <GatedKind kind>
at::Tensor autograd(const at::Tensor& gate, const at::Tensor& up) {
  if (at::GradMode::is_enabled() && (gate.requires_grad() || up.requires_grad())) {
    return GatedFunction<kind>::apply(gate, up);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return forward_operator<kind>().call(gate, up);
}

template <GatedKind kind>
at::Tensor meta_forward(const at::Tensor& gate, const at::Tensor& up) {
  return gated_output(kind, gate, up);
}

template <GatedKind kind>
std::tuple<at::Tensor, at::Tensor> meta_backward(const at::Tensor& grad, const at::Tensor& gate, const at::Tensor& up) {
  return gated_gradients(kind, grad, gate, up);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor grad, Tensor gate, Tensor up) -> (Tensor grad_gate, Tensor grad_up)");
  m.def("geglu_tanh(Tensor gate, Tensor up) -> Tensor");
  m.def("geglu_tanh_backward(Tensor grad, Tensor gate, Tensor up) -> (Tensor grad_gate, Tensor grad_up)");
}

TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("swiglu", meta_forward<GatedKind::kSwiGlu>);
  m.impl("swiglu_backward", meta_backward<GatedKind::kSwiGlu>);
  m.impl("geglu_tanh", meta_forward<GatedKind::kGeGluTanh>);
  m.impl("geglu_tanh_backward", meta_backward<GatedKind::kGeGluTanh>);
}

// The backward operators have no derivative of their own; a second backward says so instead of giving zero.
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("swiglu", autograd<GatedKind::kSwiGlu>);
  m.impl("swiglu_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("geglu_tanh", autograd<GatedKind::kGeGluTanh>);
  m.impl("geglu_tanh_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  return forward_operator<GatedKind::kSwiGlu>().call(gate, up);
}

at::Tensor geglu_tanh(const at::Tensor& gate, const at::Tensor& up) {
  return forward_operator<GatedKind::kGeGluTanh>().call(gate, up);
}

}  // namespace limbeck::kernels
