// Schema, checks, Meta kernel and derivatives of dropout, and of the product of what it leaves.
#include "kernels/dropout/dropout.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "kernels/dropout/dropout_operators.h"
#include "kernels/linear/linear.h"
#include "kernels/operator/operator_handle.h"

namespace limbeck::kernels {

at::Tensor dropout_output(const at::Tensor& x, const at::Tensor& tokens, int64_t, double rate) {
  check_floating("dropout", "x", x);
  TORCH_CHECK(x.dim() >= 1, "[dropout] x is ", described(x), ", wanted [..., F]");
  TORCH_CHECK(tokens.scalar_type() == at::kLong && tokens.dim() == 1, "[dropout] tokens is ", described(tokens),
              ", wanted int64 [rows of x]");
  TORCH_CHECK(tokens.device() == x.device(), "[dropout] tokens is on ", tokens.device(), ", wanted ", x.device(),
              " (the device of x)");
  const auto width = x.sym_size(-1);
  TORCH_CHECK(width == 0 || tokens.sym_size(0) * width == x.sym_numel(), "[dropout] tokens is ", described(tokens),
              ", wanted one for each row of x, ", described(x));
  TORCH_CHECK(rate >= 0.0 && rate < 1.0, "[dropout] rate is ", rate, ", wanted 0 or more and below 1");
  return at::empty_symint(x.sym_sizes(), x.options());
}

DropoutWork::DropoutWork(const at::Tensor& x, const at::Tensor& tokens, int64_t key, double rate, const at::Tensor& out)
    : rows(x) {
  constexpr double kAll = 4294967296.0;
  const double below = std::min(std::nearbyint(rate * kAll), kAll - 1);
  TORCH_CHECK(tokens.is_contiguous(), "[dropout] tokens has strides ", tokens.strides(), ", wanted it contiguous");
  arguments = {rows.data,
               rows.stride,
               out.mutable_data_ptr(),
               rows.width,
               tokens.const_data_ptr<int64_t>(),
               static_cast<uint64_t>(key),
               static_cast<uint32_t>(below),
               1.0 / (1.0 - rate)};
}

namespace {

const auto& dropout_operator() {
  static const auto op =
      typed_operator<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, double)>("limbeck::dropout");
  return op;
}

DropoutMask mask_in(torch::autograd::AutogradContext* context, const at::Tensor& tokens) {
  return {tokens, static_cast<uint64_t>(context->saved_data["key"].toInt()), context->saved_data["rate"].toDouble()};
}

void keep_mask(torch::autograd::AutogradContext* context, int64_t key, double rate) {
  context->saved_data["key"] = key;
  context->saved_data["rate"] = rate;
}

// The operator is linear in x and its own transpose.
struct DropoutFunction : public torch::autograd::Function<DropoutFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& tokens,
                            int64_t key, double rate) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({tokens});
    keep_mask(context, key, rate);
    return dropout_operator().call(x, tokens, key, rate);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    return {kernels::dropout(grads[0], mask_in(context, context->get_saved_variables()[0])), {}, {}, {}};
  }
};

struct DroppedLinear : public torch::autograd::Function<DroppedLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& tokens, int64_t key, double rate) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, weight, tokens});
    keep_mask(context, key, rate);
    return kernels::linear(dropout_operator().call(x, tokens, key, rate), weight);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const DropoutMask mask = mask_in(context, saved[2]);
    const at::Tensor dy = grads[0].reshape({-1, weight.size(0)});
    at::Tensor dx, dweight;
    if (context->needs_input_grad(0)) dx = kernels::dropout(kernels::linear(dy, weight.t()).reshape(x.sizes()), mask);
    if (context->needs_input_grad(1)) {
      dweight = kernels::linear(dy.t(), kernels::dropout(x, mask).reshape({-1, weight.size(1)}).t());
    }
    return {dx, dweight, {}, {}, {}};
  }
};

at::Tensor dropout_autograd(const at::Tensor& x, const at::Tensor& tokens, int64_t key, double rate) {
  if (at::GradMode::is_enabled() && x.requires_grad()) return DropoutFunction::apply(x, tokens, key, rate);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return dropout_operator().call(x, tokens, key, rate);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) { m.def("dropout(Tensor x, Tensor tokens, int key, float rate) -> Tensor"); }
TORCH_LIBRARY_IMPL(limbeck, Meta, m) { m.impl("dropout", dropout_output); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) { m.impl("dropout", dropout_autograd); }

}  // namespace

at::Tensor dropout(const at::Tensor& x, const DropoutMask& mask) {
  return dropout_operator().call(x, mask.tokens, static_cast<int64_t>(mask.key), mask.rate);
}

at::Tensor dropped_linear(const at::Tensor& x, const at::Tensor& weight, const DropoutMask& mask) {
  if (at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad())) {
    return DroppedLinear::apply(x, weight, mask.tokens, static_cast<int64_t>(mask.key), mask.rate);
  }
  return kernels::linear(kernels::dropout(x, mask), weight);
}

}  // namespace limbeck::kernels
