// A plain stand-in for ATen's flash attention, which has no kernel on the CPU: it refuses what the real one refuses,
// and reads what the real one reads.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <limits>
#include <tuple>
#include <vector>

#include "fake_cuda/counters.h"
#include "fake_cuda/fake_device.h"
#include "fake_cuda/graph.h"

namespace limbeck::fake_cuda {
namespace {

using at::Tensor;
using OptionalSymInt = std::optional<c10::SymInt>;

void check_operand(const char* name, const Tensor& t, const Tensor& q) {
  TORCH_CHECK(t.is_cuda(), name, " must be on CUDA");
  TORCH_CHECK(t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16,
              "FlashAttention only support fp16 and bf16 data type, and ", name, " is ", t.scalar_type());
  TORCH_CHECK(t.scalar_type() == q.scalar_type(), "query and ", name, " must have the same dtype");
  TORCH_CHECK(t.stride(-1) == 1, name, " must have contiguous last dimension");
  TORCH_CHECK(t.size(-1) % 8 == 0 && t.size(-1) <= 256, name, " has a head dimension of ", t.size(-1));
}

// Where the sequences of [total, H, D] lie; dense ones [B, T, H, D] lie end to end as well.
std::vector<int64_t> ends_of(const std::optional<Tensor>& cumulative, const Tensor& t) {
  std::vector<int64_t> ends;
  if (cumulative && cumulative->defined()) {
    TORCH_CHECK(cumulative->scalar_type() == at::kInt, "cu_seqlens must have dtype int32");
    TORCH_CHECK(cumulative->is_cuda() && cumulative->is_contiguous(), "cu_seqlens must be contiguous, on CUDA");
    TORCH_CHECK(t.dim() == 3, "sequences by cu_seqlens are [total, H, D]");
    const Tensor host = on_host(*cumulative);
    for (int64_t i = 0; i < host.numel(); ++i) ends.push_back(host.const_data_ptr<int>()[i]);
    for (size_t i = 1; i < ends.size(); ++i) TORCH_CHECK(ends[i - 1] <= ends[i], "cu_seqlens must ascend");
    TORCH_CHECK(ends.front() == 0 && ends.back() == t.size(0), "cu_seqlens must cover all tokens");
  } else {
    TORCH_CHECK(t.dim() == 4, "sequences of one length are [B, T, H, D]");
    for (int64_t row = 0; row <= t.size(0); ++row) ends.push_back(row * t.size(1));
  }
  return ends;
}

struct Mask {
  bool causal;
  OptionalSymInt left, right;

  Tensor hidden(int64_t queries, int64_t keys) const {
    const Tensor own = at::arange(queries).unsqueeze(1) + (keys - queries), other = at::arange(keys).unsqueeze(0);
    Tensor result = at::zeros({queries, keys}, at::kBool);
    if (causal) result = result.logical_or(other > own);
    if (left) result = result.logical_or(own - other > left->expect_int());
    if (right) result = result.logical_or(other - own > right->expect_int());
    return result;
  }
};

// One sequence: [L, H, D] -> [H, L, D] in float32, key heads repeated for the query heads that share them.
Tensor by_head(const Tensor& t, int64_t begin, int64_t end, int64_t heads) {
  const Tensor rows = on_host(t).flatten(0, t.dim() - 3).slice(0, begin, end).to(at::kFloat).transpose(0, 1);
  return rows.repeat_interleave(heads / rows.size(0), 0);
}

void put(const Tensor& into, int64_t begin, int64_t end, const Tensor& by_head) {
  const int64_t heads = into.size(-2);
  const Tensor summed = by_head.unflatten(0, {heads, by_head.size(0) / heads}).sum(1);
  on_host(into).flatten(0, into.dim() - 3).slice(0, begin, end).copy_(summed.transpose(0, 1));
}

void count_operator(const Tensor& q) {
  if (capturing(current_stream(q.device().index())) == nullptr) ++counters().operators;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                           const std::optional<Tensor>& cumulative_q,
                                                           const std::optional<Tensor>& cumulative_k, c10::SymInt,
                                                           c10::SymInt, double dropout, bool causal, bool,
                                                           std::optional<double> scale, OptionalSymInt left,
                                                           OptionalSymInt right, const std::optional<Tensor>& used,
                                                           const std::optional<Tensor>& slopes) {
  for (const auto& [name, t] : {std::pair{"query", q}, {"key", k}, {"value", v}}) check_operand(name, t, q);
  TORCH_CHECK(dropout == 0.0 && !used && !slopes && scale, "the fake flash attention knows none of these");
  const int64_t heads = q.size(-2), total = q.numel() / (heads * q.size(-1));
  const Tensor out = at::empty(q.sizes(), q.options());
  const Tensor lse = at::empty({heads, total}, q.options().dtype(at::kFloat));
  const Tensor state = at::empty({2}, q.options().dtype(at::kLong));
  const Tensor rows = q.dim() == 3 ? Tensor() : at::empty({q.size(0), heads, q.size(1)}, lse.options());
  const auto attend = [=, q = place_of(q), k = place_of(k), v = place_of(v), out = place_of(out), lse = place_of(lse),
                       rows = place_of(rows), cumulative_q = place_of(cumulative_q.value_or(Tensor())),
                       cumulative_k = place_of(cumulative_k.value_or(Tensor()))] {
    const auto queries = ends_of(cumulative_q, q), keys = ends_of(cumulative_k, k);
    for (size_t i = 0; i + 1 < queries.size(); ++i) {
      const int64_t begin = queries[i], end = queries[i + 1];
      if (begin == end) continue;
      const Tensor q_row = by_head(q, begin, end, heads), k_row = by_head(k, keys[i], keys[i + 1], heads);
      const Tensor hidden = Mask{causal, left, right}.hidden(end - begin, keys[i + 1] - keys[i]);
      const Tensor scores = at::bmm(q_row, k_row.transpose(1, 2))
                                .mul(*scale)
                                .masked_fill(hidden, -std::numeric_limits<double>::infinity());
      put(out, begin, end, at::bmm(at::softmax(scores, -1), by_head(v, keys[i], keys[i + 1], heads)));
      on_host(lse).slice(1, begin, end).copy_(at::logsumexp(scores, -1));
    }
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
    check_operand(name, t, q);
  }
  TORCH_CHECK(at::globalContext().deterministicAlgorithms() && !at::globalContext().deterministicAlgorithmsWarnOnly(),
              "flash attention's backward would add up in any order");
  const int64_t heads = q.size(-2), total = q.numel() / (heads * q.size(-1));
  TORCH_CHECK(
      lse.sizes() == (q.dim() == 3 ? at::IntArrayRef({heads, total}) : at::IntArrayRef({q.size(0), heads, q.size(1)})),
      "logsumexp is ", lse.sizes());
  const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  const Tensor dv = at::empty(v.sizes(), v.options());
  const auto attend = [=, dout = place_of(dout), q = place_of(q), k = place_of(k), v = place_of(v), out = place_of(out),
                       lse = place_of(lse), dq = place_of(dq), dk = place_of(dk), dv = place_of(dv),
                       cumulative_q = place_of(cumulative_q), cumulative_k = place_of(cumulative_k)] {
    const auto queries = ends_of(cumulative_q, q), keys = ends_of(cumulative_k, k);
    const Tensor sums = q.dim() == 3 ? on_host(lse) : on_host(lse).transpose(0, 1).reshape({heads, total});
    for (size_t i = 0; i + 1 < queries.size(); ++i) {
      const int64_t begin = queries[i], end = queries[i + 1], k_begin = keys[i], k_end = keys[i + 1];
      if (begin == end) continue;
      const Tensor q_row = by_head(q, begin, end, heads), k_row = by_head(k, k_begin, k_end, heads);
      const Tensor d_row = by_head(dout, begin, end, heads), o_row = by_head(out, begin, end, heads);
      const Tensor hidden = Mask{causal, left, right}.hidden(end - begin, k_end - k_begin);
      const Tensor scores = at::bmm(q_row, k_row.transpose(1, 2)).mul(*scale);
      const Tensor p = (scores - sums.slice(1, begin, end).unsqueeze(2)).exp().masked_fill(hidden, 0.0);
      const Tensor dp = at::bmm(d_row, by_head(v, k_begin, k_end, heads).transpose(1, 2));
      const Tensor ds = p * (dp - (d_row * o_row).sum(-1, true)) * *scale;
      put(dq, begin, end, at::bmm(ds, k_row));
      put(dk, k_begin, k_end, at::bmm(ds.transpose(1, 2), q_row));
      put(dv, k_begin, k_end, at::bmm(p.transpose(1, 2), d_row));
    }
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
