#include "fake_cuda/plain_attention.h"

#include <ATen/ATen.h>

#include <limits>

#include "fake_cuda/counters.h"
#include "fake_cuda/fake_device.h"
#include "fake_cuda/graph.h"

namespace limbeck::fake_cuda {
namespace {

using at::Tensor;

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

}  // namespace

void check_flash_operand(const char* name, const Tensor& t, const Tensor& q, int64_t most) {
  TORCH_CHECK(t.is_cuda(), name, " must be on CUDA");
  TORCH_CHECK(t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16,
              "FlashAttention only support fp16 and bf16 data type, and ", name, " is ", t.scalar_type());
  TORCH_CHECK(t.scalar_type() == q.scalar_type(), "query and ", name, " must have the same dtype");
  TORCH_CHECK(t.stride(-1) == 1, name, " must have contiguous last dimension");
  TORCH_CHECK(t.size(-1) % 8 == 0 && t.size(-1) <= most, name, " has a head dimension of ", t.size(-1));
}

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

void count_operator(const Tensor& q) {
  if (capturing(current_stream(q.device().index())) == nullptr) ++counters().operators;
}

Tensor PlainAttention::hidden(int64_t queries, int64_t keys) const {
  const Tensor own = at::arange(queries).unsqueeze(1) + (keys - queries), other = at::arange(keys).unsqueeze(0);
  Tensor result = at::zeros({queries, keys}, at::kBool);
  if (causal) result = result.logical_or(other > own);
  if (left) result = result.logical_or(own - other > *left);
  if (right) result = result.logical_or(other - own > *right);
  return result;
}

Tensor PlainAttention::scores(const Tensor& q, const Tensor& k) const {
  const Tensor plain = at::bmm(q, k.transpose(1, 2)).mul(scale);
  return softcap > 0 ? plain.div(softcap).tanh().mul(softcap) : plain;
}

void PlainAttention::forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& queries,
                             const std::vector<int64_t>& keys, const Tensor& out, const Tensor& lse) const {
  const int64_t heads = q.size(-2);
  for (size_t i = 0; i + 1 < queries.size(); ++i) {
    const int64_t begin = queries[i], end = queries[i + 1];
    if (begin == end) continue;
    const Tensor seen =
        scores(by_head(q, begin, end, heads), by_head(k, keys[i], keys[i + 1], heads))
            .masked_fill(hidden(end - begin, keys[i + 1] - keys[i]), -std::numeric_limits<double>::infinity());
    put(out, begin, end, at::bmm(at::softmax(seen, -1), by_head(v, keys[i], keys[i + 1], heads)));
    on_host(lse).slice(1, begin, end).copy_(at::logsumexp(seen, -1));
  }
}

void PlainAttention::backward(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                              const Tensor& lse, const std::vector<int64_t>& queries, const std::vector<int64_t>& keys,
                              const Tensor& dq, const Tensor& dk, const Tensor& dv) const {
  const int64_t heads = q.size(-2);
  for (size_t i = 0; i + 1 < queries.size(); ++i) {
    const int64_t begin = queries[i], end = queries[i + 1], k_begin = keys[i], k_end = keys[i + 1];
    if (begin == end) continue;
    const Tensor q_row = by_head(q, begin, end, heads), k_row = by_head(k, k_begin, k_end, heads);
    const Tensor d_row = by_head(dout, begin, end, heads), o_row = by_head(out, begin, end, heads);
    const Tensor capped = scores(q_row, k_row);
    const Tensor p = (capped - on_host(lse).slice(1, begin, end).unsqueeze(2))
                         .exp()
                         .masked_fill(hidden(end - begin, k_end - k_begin), 0.0);
    const Tensor dp = at::bmm(d_row, by_head(v, k_begin, k_end, heads).transpose(1, 2));
    Tensor ds = p * (dp - (d_row * o_row).sum(-1, true)) * scale;
    if (softcap > 0) ds = ds * (1.0 - capped.div(softcap).square());
    put(dq, begin, end, at::bmm(ds, k_row));
    put(dk, k_begin, k_end, at::bmm(ds.transpose(1, 2), q_row));
    put(dv, k_begin, k_end, at::bmm(p.transpose(1, 2), d_row));
  }
}

}  // namespace limbeck::fake_cuda
