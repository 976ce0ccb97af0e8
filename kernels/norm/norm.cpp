// Schemas, checks, Meta kernels and derivatives of RMSNorm and LayerNorm.
#include "kernels/norm/norm.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/norm/norm_operators.h"
#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"

namespace limbeck::kernels {
namespace {

void check_input(const char* op, const at::Tensor& x, double eps) {
  check_floating(op, "x", x);
  TORCH_CHECK(x.dim() >= 1 && x.sym_size(-1) > 0, "[", op, "] x is ", described(x), ", wanted [..., D] with D > 0");
  TORCH_CHECK(eps >= 0.0, "[", op, "] eps is ", eps, ", wanted 0 or more");
}

void check_vector(const char* op, const char* name, const at::Tensor& vector, const at::Tensor& x) {
  check_matches(op, name, vector, "x", x);
  TORCH_CHECK(vector.dim() == 1 && vector.sym_size(0) == x.sym_size(-1), "[", op, "] ", name, " is ", described(vector),
              ", wanted [", x.sym_size(-1), "], the last dimension of x");
}

void check_gradient(const char* op, const at::Tensor& grad, const at::Tensor& x) {
  check_matches(op, "the gradient", grad, "x", x);
  check_same_shape(op, "the gradient", grad, "x", x);
}

void check_statistic(const char* op, const char* name, const at::Tensor& statistic, const at::Tensor& x) {
  const auto leading = x.sym_sizes().slice(0, x.dim() - 1);
  TORCH_CHECK(
      statistic.scalar_type() == wide_type(x) && statistic.device() == x.device() && statistic.sym_sizes() == leading,
      "[", op, "] ", name, " is ", described(statistic), ", wanted the one saved for x (", described(x), ")");
}

at::Tensor empty_like_dense(const at::Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); }

at::Tensor empty_statistic(const at::Tensor& x) {
  return at::empty_symint(x.sym_sizes().slice(0, x.dim() - 1), x.options().dtype(wide_type(x)));
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> rms_norm_outputs(const at::Tensor& x, const at::Tensor& weight, double eps, bool) {
  check_input("rms_norm", x, eps);
  check_vector("rms_norm", "weight", weight, x);
  return {empty_like_dense(x), empty_statistic(x)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_outputs(const at::Tensor& x, const at::Tensor& weight,
                                                                  const std::optional<at::Tensor>& bias, double eps) {
  check_input("layer_norm", x, eps);
  check_vector("layer_norm", "weight", weight, x);
  if (bias.has_value()) check_vector("layer_norm", "bias", *bias, x);
  return {empty_like_dense(x), empty_statistic(x), empty_statistic(x)};
}

std::tuple<at::Tensor, at::Tensor> rms_norm_gradients(const at::Tensor& grad, const at::Tensor& x,
                                                      const at::Tensor& weight, const at::Tensor& rstd, bool,
                                                      std::array<bool, 2> mask) {
  check_input("rms_norm_backward", x, 0.0);
  check_vector("rms_norm_backward", "weight", weight, x);
  check_gradient("rms_norm_backward", grad, x);
  check_statistic("rms_norm_backward", "rstd", rstd, x);
  return {mask[0] ? empty_like_dense(x) : at::Tensor(), mask[1] ? empty_like_dense(weight) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_gradients(const at::Tensor& grad, const at::Tensor& x,
                                                                    const at::Tensor& weight, const at::Tensor& mean,
                                                                    const at::Tensor& rstd, std::array<bool, 3> mask) {
  check_input("layer_norm_backward", x, 0.0);
  check_vector("layer_norm_backward", "weight", weight, x);
  check_gradient("layer_norm_backward", grad, x);
  check_statistic("layer_norm_backward", "mean", mean, x);
  check_statistic("layer_norm_backward", "rstd", rstd, x);
  return {mask[0] ? empty_like_dense(x) : at::Tensor(), mask[1] ? empty_like_dense(weight) : at::Tensor(),
          mask[2] ? empty_like_dense(weight) : at::Tensor()};
}

namespace {

std::tuple<at::Tensor, at::Tensor> call_rms_forward(const at::Tensor& x, const at::Tensor& weight, double eps,
                                                    bool unit_offset) {
  static const auto op = typed_operator<decltype(rms_norm_outputs)>("limbeck::rms_norm_forward");
  return op.call(x, weight, eps, unit_offset);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> call_layer_forward(const at::Tensor& x, const at::Tensor& weight,
                                                                  const std::optional<at::Tensor>& bias, double eps) {
  static const auto op = typed_operator<decltype(layer_norm_outputs)>("limbeck::layer_norm_forward");
  return op.call(x, weight, bias, eps);
}

// Both ways to y, with and without a graph, go through the one forward operator: the same bits.
at::Tensor rms_norm_plain(const at::Tensor& x, const at::Tensor& weight, double eps, bool unit_offset) {
  return std::get<0>(call_rms_forward(x, weight, eps, unit_offset));
}
at::Tensor layer_norm_plain(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                            double eps) {
  return std::get<0>(call_layer_forward(x, weight, bias, eps));
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct RmsNormFunction : public torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, double eps,
                            bool unit_offset) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [y, rstd] = call_rms_forward(x, weight, eps, unit_offset);
    context->save_for_backward({x, weight, rstd});
    context->saved_data["unit_offset"] = unit_offset;
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    static const auto op = typed_operator<decltype(rms_norm_gradients)>("limbeck::rms_norm_backward");
    const auto saved = context->get_saved_variables();
    auto [grad_x, grad_weight] =
        op.call(grads[0], saved[0], saved[1], saved[2], context->saved_data["unit_offset"].toBool(),
                {context->needs_input_grad(0), context->needs_input_grad(1)});
    return {grad_x, grad_weight, at::Tensor(), at::Tensor()};
  }
};

struct LayerNormFunction : public torch::autograd::Function<LayerNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, double eps) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [y, mean, rstd] = call_layer_forward(x, weight, bias, eps);
    context->save_for_backward({x, weight, mean, rstd});
    context->saved_data["has_bias"] = bias.has_value();
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    static const auto op = typed_operator<decltype(layer_norm_gradients)>("limbeck::layer_norm_backward");
    const auto saved = context->get_saved_variables();
    // Only tensors that came have a place among the edges that needs_input_grad counts.
    const bool wants_bias = context->saved_data["has_bias"].toBool() && context->needs_input_grad(2);
    auto [grad_x, grad_weight, grad_bias] =
        op.call(grads[0], saved[0], saved[1], saved[2], saved[3],
                {context->needs_input_grad(0), context->needs_input_grad(1), wants_bias});
    return {grad_x, grad_weight, grad_bias, at::Tensor()};
  }
};

bool wants_gradient(const at::Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }

at::Tensor rms_norm_autograd(const at::Tensor& x, const at::Tensor& weight, double eps, bool unit_offset) {
  if (at::GradMode::is_enabled() && (wants_gradient(x) || wants_gradient(weight))) {
    return RmsNormFunction::apply(x, weight, eps, unit_offset);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return rms_norm_plain(x, weight, eps, unit_offset);
}

at::Tensor layer_norm_autograd(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                               double eps) {
  const bool bias_wants = bias.has_value() && wants_gradient(*bias);
  if (at::GradMode::is_enabled() && (wants_gradient(x) || wants_gradient(weight) || bias_wants)) {
    return LayerNormFunction::apply(x, weight, bias, eps);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return layer_norm_plain(x, weight, bias, eps);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps, bool unit_offset=False) -> Tensor");
  m.def("rms_norm_forward(Tensor x, Tensor weight, float eps, bool unit_offset) -> (Tensor y, Tensor rstd)");
  m.def(
      "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor rstd, bool unit_offset, bool[2] output_mask)"
      " -> (Tensor grad_x, Tensor grad_weight)");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor");
  m.def(
      "layer_norm_forward(Tensor x, Tensor weight, Tensor? bias, float eps)"
      " -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "layer_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor rstd, bool[3] output_mask)"
      " -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)");
}

TORCH_LIBRARY_IMPL(limbeck, CompositeExplicitAutograd, m) {
  m.impl("rms_norm", rms_norm_plain);
  m.impl("layer_norm", layer_norm_plain);
}

TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("rms_norm_forward", rms_norm_outputs);
  m.impl("rms_norm_backward", rms_norm_gradients);
  m.impl("layer_norm_forward", layer_norm_outputs);
  m.impl("layer_norm_backward", layer_norm_gradients);
}

// The inner operators have no derivative of their own; a second backward says so instead of giving zero.
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("rms_norm", rms_norm_autograd);
  m.impl("layer_norm", layer_norm_autograd);
  for (const char* name : {"rms_norm_forward", "rms_norm_backward", "layer_norm_forward", "layer_norm_backward"}) {
    m.impl(name, torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, bool unit_offset) {
  static const auto op = typed_operator<decltype(rms_norm_plain)>("limbeck::rms_norm");
  return op.call(x, weight, eps, unit_offset);
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      double eps) {
  static const auto op = typed_operator<decltype(layer_norm_plain)>("limbeck::layer_norm");
  return op.call(x, weight, bias, eps);
}

}  // namespace limbeck::kernels
