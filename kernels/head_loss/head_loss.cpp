#include "kernels/head_loss/head_loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <utility>

#include "kernels/head_loss/head_loss_cpu.h"
#include "kernels/head_loss/head_loss_signature.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/planned_device.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;
using Three = std::tuple<Tensor, Tensor, Tensor>;

// ---- bodies of head_loss_forward ------------------------------------------------------------------------------------

HeadLossResults forward_cpu(const HeadLossInputs& in, const HeadLossOptions& wanted, bool hidden, bool weight) {
  const auto options = check_head_loss(in, wanted);
  return any_float64(in, options) ? composed_head_loss(in, options, hidden, weight)
                                  : head_loss_on_cpu(in, options, hidden, weight);
}

// Allocates what the body of the planned device allocates, when every token counts.
HeadLossResults forward_meta(const HeadLossInputs& in, const HeadLossOptions& wanted, bool hidden, bool weight) {
  const auto options = check_head_loss(in, wanted);
  const auto tokens = in.student_hidden.sym_size(0);
  const auto wide = in.divergence_weight.options();
  const auto empty_like = [](const Tensor& t, bool asked) {
    return at::empty_symint({asked ? t.sym_size(0) : c10::SymInt(0), t.sym_size(1)}, t.options());
  };
  auto divergence = at::empty_symint({tokens}, wide), cross_entropy = at::empty_symint({tokens}, wide);
  auto d_hidden = empty_like(in.student_hidden, hidden), d_weight = empty_like(in.student_weight, weight);
  const auto concrete = tokens.maybe_as_int();
  if (concrete && *concrete > 0 && head_loss_type(in) == at::kFloat) {
    const HeadShape shape = head_shape(in, options, *concrete, hidden, weight);
    const int64_t bytes = planned_device() == at::kCUDA ? cuda_head_scratch(shape) : head_plan(shape).bytes;
    hold_for_a_moment(in.student_hidden, bytes);
  }
  return {at::empty({}, wide), divergence, cross_entropy, d_hidden, d_weight};
}

// ---- the operators' flat signatures ---------------------------------------------------------------------------------

#define LIMBECK_HEAD_LOSS_SCHEMA                                                                                      \
  "Tensor student_hidden, Tensor student_weight, Tensor? teacher_hidden, Tensor? teacher_weight, Tensor? labels, "    \
  "Tensor divergence_weight, Tensor ce_weight, str divergence=\"forward_kl\", float mix=0.5, float temperature=1.0, " \
  "float student_softcap=0.0, float teacher_softcap=0.0, float student_scale=1.0, float teacher_scale=1.0, "          \
  "float clamp=0.0, float label_smoothing=0.0, int vocabulary=0, float gradient_scale=1.0"

HeadLossResults call_forward(const HeadLossInputs& in, const HeadLossOptions& o, bool hidden, bool weight) {
  static const auto op = typed_operator<decltype(flat<forward_meta>)>("limbeck::head_loss_forward");
  return op.call(in.student_hidden, in.student_weight, in.teacher_hidden, in.teacher_weight, in.labels,
                 in.divergence_weight, in.ce_weight, divergence_name(o.divergence), o.mix, o.temperature,
                 o.student_softcap, o.teacher_softcap, o.student_scale, o.teacher_scale, o.clamp, o.label_smoothing,
                 o.vocabulary, o.gradient_scale, hidden, weight);
}

// ---- autograd
// --------------------------------------------------------------------------------------------------------

// The gradient made in the forward for a seed of `made_for`, for the seed that came.
Tensor reseeded(const Tensor& gradient, const Tensor& seed, double made_for, bool may_overwrite) {
  if (seed.is_meta()) return gradient;
  if (!seed.is_cpu()) {  // the seed is not read: the stream would have to be waited for
    const auto ratio = seed.div(made_for);
    return may_overwrite ? gradient.mul_(ratio) : gradient.mul(ratio);
  }
  const double ratio = seed.item().toDouble() / made_for;
  if (ratio == 1.0) return gradient;
  return may_overwrite ? gradient.mul_(ratio) : gradient.mul(ratio);
}

class HeadLossFunction : public torch::autograd::Function<HeadLossFunction> {
 public:
  // The rest is no variable: nothing but the student's two tensors gets a gradient.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& student_hidden,
                                                const Tensor& student_weight, const HeadLossInputs& in,
                                                const HeadLossOptions& options) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, divergence, cross_entropy, d_hidden, d_weight] =
        call_forward(in, options, student_hidden.requires_grad(), student_weight.requires_grad());
    // Not save_for_backward, whose reference would make the engine copy each gradient into its parameter.
    if (student_hidden.requires_grad()) ctx->saved_data["hidden"] = d_hidden;
    if (student_weight.requires_grad()) ctx->saved_data["weight"] = d_weight;
    ctx->saved_data["made_for"] = options.gradient_scale;
    ctx->mark_non_differentiable({divergence, cross_entropy});
    return {loss, divergence, cross_entropy};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "[head_loss] create_graph=True asks for a second derivative, which is not implemented: wanted "
                "create_graph=False");
    const bool keep = torch::autograd::get_current_graph_task_keep_graph();
    const double made_for = ctx->saved_data["made_for"].toDouble();
    const auto gradient = [&](const char* name, size_t input) {
      if (!ctx->needs_input_grad(input)) return Tensor();
      const auto at = ctx->saved_data.find(name);
      TORCH_CHECK(at != ctx->saved_data.end(),
                  "[head_loss] backward came a second time, but the gradients were handed out the first time: wanted "
                  "retain_graph=True there");
      auto made = at->second.toTensor();
      if (!keep) ctx->saved_data.erase(at);
      return reseeded(made, grads[0], made_for, /*may_overwrite=*/!keep);
    };
    return {gradient("hidden", 0), gradient("weight", 1), Tensor(), Tensor()};
  }
};

Three first_three(const HeadLossResults& r) { return {std::get<0>(r), std::get<1>(r), std::get<2>(r)}; }

Three head_loss_below_autograd(LIMBECK_HEAD_LOSS_PARAMETERS) {
  return first_three(call_forward(inputs_of(LIMBECK_HEAD_LOSS_ARGUMENTS), options_of(LIMBECK_HEAD_LOSS_ARGUMENTS),
                                  /*hidden=*/false, /*weight=*/false));
}

Three head_loss_autograd(LIMBECK_HEAD_LOSS_PARAMETERS) {
  const auto in = inputs_of(LIMBECK_HEAD_LOSS_ARGUMENTS);
  const auto options = options_of(LIMBECK_HEAD_LOSS_ARGUMENTS);
  if (!at::GradMode::is_enabled() || !(student_hidden.requires_grad() || student_weight.requires_grad())) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return first_three(call_forward(in, options, /*hidden=*/false, /*weight=*/false));
  }
  const auto out = HeadLossFunction::apply(student_hidden, student_weight, in, options);
  return {out[0], out[1], out[2]};
}

}  // namespace

HeadLoss head_loss(const Tensor& student_hidden, const Tensor& student_weight, const OptionalTensor& teacher_hidden,
                   const OptionalTensor& teacher_weight, const OptionalTensor& labels,
                   const Tensor& divergence_weight_n, const Tensor& ce_weight_n, const HeadLossOptions& o) {
  static const auto op = typed_operator<decltype(head_loss_autograd)>("limbeck::head_loss");
  auto [loss, divergence, cross_entropy] =
      op.call(student_hidden, student_weight, teacher_hidden, teacher_weight, labels, divergence_weight_n, ce_weight_n,
              divergence_name(o.divergence), o.mix, o.temperature, o.student_softcap, o.teacher_softcap,
              o.student_scale, o.teacher_scale, o.clamp, o.label_smoothing, o.vocabulary, o.gradient_scale);
  return {loss, divergence, cross_entropy};
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("head_loss(" LIMBECK_HEAD_LOSS_SCHEMA ") -> (Tensor, Tensor, Tensor)");
  m.def("head_loss_forward(" LIMBECK_HEAD_LOSS_SCHEMA
        ", bool hidden_gradient=False, bool weight_gradient=False) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(limbeck, CompositeExplicitAutograd, m) { m.impl("head_loss", &head_loss_below_autograd); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) { m.impl("head_loss", &head_loss_autograd); }
TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("head_loss_forward", &flat<forward_cpu>); }
TORCH_LIBRARY_IMPL(limbeck, Meta, m) { m.impl("head_loss_forward", &flat<forward_meta>); }

}  // namespace limbeck::kernels
