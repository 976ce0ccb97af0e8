// A plain stand-in for ATen's flash attention, which has no kernel on the CPU: it refuses what the real one refuses,
// and reads what the real one reads.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>

#include "fake_cuda/fake_device.h"
#include "fake_cuda/plain_attention.h"

namespace limbeck::fake_cuda {
namespace {

using at::Tensor;
using OptionalSymInt = std::optional<c10::SymInt>;

constexpr int64_t kMostWidth = 256;

PlainAttention masked(double scale, bool causal, const OptionalSymInt& left, const OptionalSymInt& right) {
  const auto number = [](const OptionalSymInt& n) { return n ? std::optional(n->expect_int()) : std::nullopt; };
  return {.scale = scale, .softcap = 0.0, .causal = causal, .left = number(left), .right = number(right)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                           const std::optional<Tensor>& cumulative_q,
                                                           const std::optional<Tensor>& cumulative_k, c10::SymInt,
                                                           c10::SymInt, double dropout, bool causal, bool,
                                                           std::optional<double> scale, OptionalSymInt left,
                                                           OptionalSymInt right, const std::optional<Tensor>& used,
                                                           const std::optional<Tensor>& slopes) {
  for (const auto& [name, t] : {std::pair{"query", q}, {"key", k}, {"value", v}}) {
    check_flash_operand(name, t, q, kMostWidth);
  }
  TORCH_CHECK(dropout == 0.0 && !used && !slopes && scale, "the fake flash attention knows none of these");
  const int64_t heads = q.size(-2), total = q.numel() / (heads * q.size(-1));
  const Tensor out = at::empty(q.sizes(), q.options());
  const Tensor lse = at::empty({heads, total}, q.options().dtype(at::kFloat));
  const Tensor state = at::empty({2}, q.options().dtype(at::kLong));
  const Tensor rows = q.dim() == 3 ? Tensor() : at::empty({q.size(0), heads, q.size(1)}, lse.options());
  const auto attend = [attention = masked(*scale, causal, left, right), q = place_of(q), k = place_of(k),
                       v = place_of(v), out = place_of(out), lse = place_of(lse), rows = place_of(rows),
                       cumulative_q = place_of(cumulative_q.value_or(Tensor())),
                       cumulative_k = place_of(cumulative_k.value_or(Tensor()))] {
    attention.forward(q, k, v, ends_of(cumulative_q, q), ends_of(cumulative_k, k), out, lse);
    if (rows.defined()) on_host(rows).copy_(on_host(lse).unflatten(1, {q.size(0), q.size(1)}).transpose(0, 1));
  };
  count_operator(q);
  give("aten::_flash_attention_forward", q.device(),
       {q, k, v, cumulative_q.value_or(Tensor()), cumulative_k.value_or(Tensor())}, {out, lse, rows}, attend);
  return {out, rows.defined() ? rows : lse, state, state, Tensor()};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& out, const Tensor& lse, const Tensor& cumulative_q,
                                            const Tensor& cumulative_k, c10::SymInt, c10::SymInt, double, bool causal,
                                            const Tensor&, const Tensor&, std::optional<double> scale,
                                            OptionalSymInt left, OptionalSymInt right) {
  for (const auto& [name, t] : {std::pair{"query", q}, {"key", k}, {"value", v}, {"out", out}, {"dout", dout}}) {
    check_flash_operand(name, t, q, kMostWidth);
  }
  TORCH_CHECK(at::globalContext().deterministicAlgorithms() && !at::globalContext().deterministicAlgorithmsWarnOnly(),
              "flash attention's backward would add up in any order");
  const int64_t heads = q.size(-2), total = q.numel() / (heads * q.size(-1));
  TORCH_CHECK(
      lse.sizes() == (q.dim() == 3 ? at::IntArrayRef({heads, total}) : at::IntArrayRef({q.size(0), heads, q.size(1)})),
      "logsumexp is ", lse.sizes());
  const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  const Tensor dv = at::empty(v.sizes(), v.options());
  const auto attend = [=, attention = masked(*scale, causal, left, right), dout = place_of(dout), q = place_of(q),
                       k = place_of(k), v = place_of(v), out = place_of(out), lse = place_of(lse), dq = place_of(dq),
                       dk = place_of(dk), dv = place_of(dv), cumulative_q = place_of(cumulative_q),
                       cumulative_k = place_of(cumulative_k)] {
    const Tensor sums = q.dim() == 3 ? lse : on_host(lse).transpose(0, 1).reshape({heads, total});
    attention.backward(dout, q, k, v, out, sums, ends_of(cumulative_q, q), ends_of(cumulative_k, k), dq, dk, dv);
  };
  count_operator(q);
  give("aten::_flash_attention_backward", q.device(), {dout, q, k, v, out, lse, cumulative_q, cumulative_k},
       {dq, dk, dv}, attend);
  return {dq, dk, dv};
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("_flash_attention_forward", forward);
  m.impl("_flash_attention_backward", backward);
}

}  // namespace
}  // namespace limbeck::fake_cuda
