#include "kernels/attention/attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/attention/attention_operands.h"
#include "kernels/attention/flash_attention.h"
#include "kernels/attention/flash_attention_3.h"
#include "kernels/operator/planned_device.h"
#include "kernels/operator/wide_type.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

void check_like_q(const char* name, const Tensor& t, const Tensor& q) {
  TORCH_CHECK(t.dim() == 4, "[attention] ", name, " is ", t.sizes(), ", wanted [B, S, Hkv, D]");
  TORCH_CHECK(t.scalar_type() == q.scalar_type(), "[attention] ", name, " is ", t.scalar_type(), ", wanted ",
              q.scalar_type(), " (the dtype of q)");
  TORCH_CHECK(t.device() == q.device(), "[attention] ", name, " is on ", t.device(), ", wanted ", q.device(),
              " (the device of q)");
  TORCH_CHECK(t.sym_size(0) == q.sym_size(0), "[attention] ", name, " is ", t.sym_sizes(), ", wanted the batch of q ",
              q.sym_sizes());
}

void check_segments(const char* name, const OptionalTensor& segments, const Tensor& of) {
  if (!segments) return;
  TORCH_CHECK(segments->scalar_type() == at::kInt, "[attention] ", name, " is ", segments->scalar_type(),
              ", wanted int32");
  TORCH_CHECK(segments->device() == of.device(), "[attention] ", name, " is on ", segments->device(), ", wanted ",
              of.device());
  TORCH_CHECK(
      segments->dim() == 2 && segments->sym_size(0) == of.sym_size(0) && segments->sym_size(1) == of.sym_size(1),
      "[attention] ", name, " is ", segments->sym_sizes(), ", wanted [", of.sym_size(0), ", ", of.sym_size(1), "]");
}

// A result of this shape, contiguous whatever the strides of its inputs are.
Tensor empty_like_shape(const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); }

bool plans_flash_attention_3(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                             const OptionalTensor& segments_k, const OptionalTensor& runs, double softcap) {
  return planned_device() == at::kCUDA && flash_attention_3_serves(q, k, v, segments_q, segments_k, runs, softcap);
}

// A plan for a GPU runs the composition where that runs there; FlashAttention says itself what it holds.
bool plans_composition(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                       const OptionalTensor& segments_k, const OptionalTensor& runs, double softcap) {
  return planned_device() == at::kCUDA && !flash_attention_3_serves(q, k, v, segments_q, segments_k, runs, softcap) &&
         !flash_attention_serves(q, k, v, segments_q, segments_k, runs, softcap);
}

OptionalTensor ends_of(const OptionalTensor& segments, const OptionalTensor& runs) {
  return segments ? runs : std::nullopt;
}

std::tuple<Tensor, Tensor> attention_forward_meta(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const OptionalTensor& segments_q, const OptionalTensor& segments_k,
                                                  double scale, bool causal, int64_t window, double softcap,
                                                  const OptionalTensor& runs) {
  check_attention(q, k, v, segments_q, segments_k, window, softcap);
  if (plans_composition(q, k, v, segments_q, segments_k, runs, softcap)) {
    const at::DisableRecordFunctionGuard inside;  // who records operators sees this one
    return composed_attention_forward(q, k, v, segments_q, segments_k, scale, causal, window, softcap);
  }
  auto out = at::empty_symint({q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}, q.options());
  auto lse = at::empty_symint({q.sym_size(0), q.sym_size(2), q.sym_size(1)}, q.options().dtype(wide_type(q)));
  if (plans_flash_attention_3(q, k, v, segments_q, segments_k, runs, softcap)) {
    hold_for_a_moment(q, flash_attention_3_forward_scratch(q, k, ends_of(segments_q, runs), causal, window));
  } else if (planned_device() == at::kCUDA) {
    hold_for_a_moment(q, flash_forward_scratch(q, segments_q.has_value()));
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward_meta(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                           const Tensor& v, const Tensor& out, const Tensor& lse,
                                                           const OptionalTensor& segments_q,
                                                           const OptionalTensor& segments_k, double scale, bool causal,
                                                           int64_t window, double softcap, const OptionalTensor& runs) {
  if (plans_composition(q, k, v, segments_q, segments_k, runs, softcap)) {
    const at::DisableRecordFunctionGuard inside;
    return composed_attention_backward(dout, q, k, v, out, lse, segments_q, segments_k, scale, causal, window, softcap);
  }
  std::tuple results{empty_like_shape(q), empty_like_shape(k), empty_like_shape(v)};
  if (plans_flash_attention_3(q, k, v, segments_q, segments_k, runs, softcap)) {
    hold_for_a_moment(q, flash_attention_3_backward_scratch(q, k, ends_of(segments_q, runs), causal, window, softcap));
  } else if (planned_device() == at::kCUDA) {
    hold_for_a_moment(q, flash_backward_scratch(q, k, segments_q.has_value()));
  }
  return results;
}

std::tuple<Tensor, Tensor> call_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                        const OptionalTensor& segments_q, const OptionalTensor& segments_k,
                                        double scale, bool causal, int64_t window, double softcap,
                                        const OptionalTensor& runs) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("limbeck::attention_forward", "")
                             .typed<decltype(attention_forward_meta)>();
  return op.call(q, k, v, segments_q, segments_k, scale, causal, window, softcap, runs);
}

Tensor attention_below_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                                const OptionalTensor& segments_k, double scale, bool causal, int64_t window,
                                double softcap, const OptionalTensor& runs) {
  return std::get<0>(call_forward(q, k, v, segments_q, segments_k, scale, causal, window, softcap, runs));
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static Tensor forward(torch::autograd::AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const OptionalTensor& segments_q, const OptionalTensor& segments_k, double scale, bool causal,
                        int64_t window, double softcap, const OptionalTensor& runs) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, lse] = call_forward(q, k, v, segments_q, segments_k, scale, causal, window, softcap, runs);
    ctx->save_for_backward(
        {q, k, v, out, lse, segments_q.value_or(Tensor()), segments_k.value_or(Tensor()), runs.value_or(Tensor())});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["window"] = window;
    ctx->saved_data["softcap"] = softcap;
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("limbeck::attention_backward", "")
                               .typed<decltype(attention_backward_meta)>();
    const auto saved = ctx->get_saved_variables();
    const auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    auto& data = ctx->saved_data;
    auto [dq, dk, dv] = op.call(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], optional(saved[5]),
                                optional(saved[6]), data["scale"].toDouble(), data["causal"].toBool(),
                                data["window"].toInt(), data["softcap"].toDouble(), optional(saved[7]));
    return {dq, dk, dv, {}, {}, {}, {}, {}, {}, {}};
  }
};

Tensor attention_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                          const OptionalTensor& segments_k, double scale, bool causal, int64_t window, double softcap,
                          const OptionalTensor& runs) {
  return Attention::apply(q, k, v, segments_q, segments_k, scale, causal, window, softcap, runs);
}

}  // namespace

void check_attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                     const OptionalTensor& segments_k, int64_t window, double softcap) {
  const auto dtype = q.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
              "[attention] q is ", dtype, ", wanted float32, float64, bfloat16 or float16");
  TORCH_CHECK(q.dim() == 4, "[attention] q is ", q.sizes(), ", wanted [B, T, Hq, D]");
  check_like_q("k", k, q);
  check_like_q("v", v, q);
  TORCH_CHECK(k.sym_size(3) == q.sym_size(3), "[attention] k is ", k.sym_sizes(), ", wanted the depth of q ",
              q.sym_sizes());
  TORCH_CHECK(k.sym_size(1) == v.sym_size(1) && k.sym_size(2) == v.sym_size(2), "[attention] v is ", v.sym_sizes(),
              ", wanted the length and heads of k ", k.sym_sizes());
  TORCH_CHECK(k.size(2) > 0 && q.size(2) % k.size(2) == 0, "[attention] q has ", q.size(2),
              " heads, wanted a multiple of the ", k.size(2), " of k");
  TORCH_CHECK(k.sym_size(1) >= q.sym_size(1), "[attention] k is ", k.sym_sizes(), ", wanted at least as many keys as ",
              q.sym_size(1), " queries");
  TORCH_CHECK(window >= 0, "[attention] window is ", window, ", wanted 0 (none) or more");
  TORCH_CHECK(softcap >= 0 && std::isfinite(softcap), "[attention] softcap is ", softcap, ", wanted 0 (none) or more");
  TORCH_CHECK(segments_q.has_value() == segments_k.has_value(),
              "[attention] segments came for one of q and k, wanted both or none");
  check_segments("segments_q", segments_q, q);
  check_segments("segments_k", segments_k, k);
}

bool reads_runs(const Tensor& like) {
  return like.is_cuda() || (like.is_meta() && planned_device() == at::kCUDA && uses_flash_attention_3());
}

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                 const OptionalTensor& segments_k, const AttentionOptions& options, const OptionalTensor& runs) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("limbeck::attention", "").typed<decltype(attention_autograd)>();
  return op.call(q, k, v, segments_q, segments_k, options.scale, options.causal, options.window, options.softcap, runs);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? segments_q=None, Tensor? segments_k=None, float scale=1.0, "
      "bool causal=True, int window=0, float softcap=0.0, Tensor? runs=None) -> Tensor");
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, Tensor? segments_q, Tensor? segments_k, float scale, "
      "bool causal, int window, float softcap, Tensor? runs=None) -> (Tensor, Tensor)");
  m.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? segments_q, "
      "Tensor? segments_k, float scale, bool causal, int window, float softcap, Tensor? runs=None) "
      "-> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(limbeck, CompositeExplicitAutograd, m) { m.impl("attention", &attention_below_autograd); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("attention", &attention_autograd);
  // Second derivatives are refused, not silently zero.
  m.impl("attention_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("attention_forward", &attention_forward_meta);
  m.impl("attention_backward", &attention_backward_meta);
}

}  // namespace limbeck::kernels
