// Attention under the CUDA key: FlashAttention where it serves (3, where a user names its library, else 2), else a
// composition of ATen operators in float32, over runs of queries so that the scores of one run stay within a fixed
// size. Plain C++: nothing here needs nvcc or the CUDA library.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "kernels/attention/attention_operands.h"
#include "kernels/attention/flash_attention.h"
#include "kernels/attention/flash_attention_3.h"
#include "kernels/operator/wide_type.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

constexpr int64_t kScoresAtOnce = int64_t{1} << 26;  // elements of one run's scores: 256 MB in float32

struct Options {
  double scale, softcap;
  bool causal;
  int64_t window;
};

// [B, L, Hkv * G, D] -> [B * Hkv, G * L, D] in the wide dtype (G = 1 for keys and values)
Tensor by_key_head(const Tensor& t, int64_t key_heads, at::ScalarType dtype) {
  const int64_t batch = t.size(0), length = t.size(1), group = t.size(2) / key_heads, depth = t.size(3);
  return t.to(dtype)
      .reshape({batch, length, key_heads, group, depth})
      .permute({0, 2, 3, 1, 4})
      .reshape({batch * key_heads, group * length, depth});
}

// The inverse, rounded to `dtype`.
Tensor by_step(const Tensor& t, int64_t batch, int64_t key_heads, int64_t length, at::ScalarType dtype) {
  const int64_t group = t.size(1) / length;
  return t.reshape({batch, key_heads, group, length, t.size(2)})
      .permute({0, 3, 1, 2, 4})
      .reshape({batch, length, key_heads * group, t.size(2)})
      .to(dtype);
}

// [B or 1, 1, 1, T', S] true where queries [begin, end) see a key; undefined: everything is seen.
Tensor visible(const Tensor& q, const Tensor& k, const OptionalTensor& segments_q, const OptionalTensor& segments_k,
               const Options& o, int64_t begin, int64_t end) {
  const int64_t keys = k.size(1), offset = keys - q.size(1);
  Tensor seen;
  const auto also = [&](const Tensor& condition) { seen = seen.defined() ? seen.logical_and(condition) : condition; };
  if (o.causal || o.window > 0) {
    const auto index = q.options().dtype(at::kLong);
    const auto own = at::arange(begin + offset, end + offset, index).unsqueeze(1), other = at::arange(keys, index);
    if (o.causal) also((other <= own).unsqueeze(0));
    if (o.window > 0) also((own - other < o.window).unsqueeze(0));
    if (o.window > 0 && !o.causal) also((other - own < o.window).unsqueeze(0));
  }
  if (segments_q) {
    const auto own = segments_q->slice(1, begin, end).unsqueeze(2);
    also((own == segments_k->unsqueeze(1)).logical_and(own != 0));
  }
  return seen.defined() ? seen.unsqueeze(1).unsqueeze(1) : seen;
}

// Scores [B * Hkv, G * T', S], -inf where not seen. `capped` receives tanh(score / softcap) when asked for.
Tensor scores_of(const Tensor& q, const Tensor& k, const Tensor& seen, const Options& o, int64_t batch, int64_t steps,
                 Tensor* capped) {
  auto scores = at::bmm(q, k.transpose(1, 2)).mul_(o.scale);
  if (o.softcap > 0) {
    const auto t = at::tanh(scores.div_(o.softcap));
    if (capped) *capped = t;
    scores = t * o.softcap;
  }
  if (!seen.defined()) return scores;
  const auto shape = scores.sizes().vec();
  auto split = scores.view({batch, shape[0] / batch, shape[1] / steps, steps, shape[2]});
  return split.masked_fill_(seen.logical_not(), -std::numeric_limits<double>::infinity()).view(shape);
}

int64_t steps_at_once(const Tensor& q, const Tensor& k) {
  const int64_t per_step = std::max<int64_t>(q.size(0) * q.size(2) * k.size(1), 1);
  return std::max<int64_t>(kScoresAtOnce / per_step, 1);
}

}  // namespace

std::tuple<Tensor, Tensor> composed_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const OptionalTensor& segments_q,
                                                      const OptionalTensor& segments_k, double scale, bool causal,
                                                      int64_t window, double softcap) {
  check_attention(q, k, v, segments_q, segments_k, window, softcap);
  const Options o{scale, softcap, causal, window};
  const int64_t batch = q.size(0), queries = q.size(1), heads = q.size(2), key_heads = k.size(2);
  const auto wide = wide_type(q);
  auto out = at::empty({batch, queries, heads, v.size(3)}, q.options());
  auto lse = at::empty({batch, heads, queries}, q.options().dtype(wide));
  if (out.numel() == 0) return {out, lse};
  const auto k_wide = by_key_head(k, key_heads, wide), v_wide = by_key_head(v, key_heads, wide);
  const int64_t step = steps_at_once(q, k);
  for (int64_t begin = 0; begin < queries; begin += step) {
    const int64_t end = std::min(begin + step, queries), steps = end - begin;
    const auto seen = visible(q, k, segments_q, segments_k, o, begin, end);
    const auto scores =
        scores_of(by_key_head(q.slice(1, begin, end), key_heads, wide), k_wide, seen, o, batch, steps, nullptr);
    const auto row_lse = at::logsumexp(scores, -1, /*keepdim=*/true);
    // A row that sees nothing has lse -inf; exp(-inf - 0) gives it zeros in place of NaN.
    const auto base = row_lse.masked_fill(row_lse.isneginf(), 0.0);
    const auto rows = at::bmm(at::exp(scores - base), v_wide);
    out.slice(1, begin, end).copy_(by_step(rows, batch, key_heads, steps, q.scalar_type()));
    lse.slice(2, begin, end).copy_(row_lse.reshape({batch, heads, steps}));
    if (q.is_meta()) break;  // in a memory plan one run stands for all
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> composed_attention_backward(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                               const Tensor& v, const Tensor& out, const Tensor& lse,
                                                               const OptionalTensor& segments_q,
                                                               const OptionalTensor& segments_k, double scale,
                                                               bool causal, int64_t window, double softcap) {
  check_attention(q, k, v, segments_q, segments_k, window, softcap);
  const Options o{scale, softcap, causal, window};
  const int64_t batch = q.size(0), queries = q.size(1), heads = q.size(2), key_heads = k.size(2);
  const auto wide = wide_type(q);
  auto dq = at::empty(q.sizes(), q.options());
  const auto k_wide = by_key_head(k, key_heads, wide), v_wide = by_key_head(v, key_heads, wide);
  auto dk = at::zeros(k_wide.sizes(), k_wide.options()), dv = at::zeros(v_wide.sizes(), v_wide.options());
  const int64_t step = q.numel() == 0 ? 1 : steps_at_once(q, k);
  for (int64_t begin = 0; begin < queries; begin += step) {
    const int64_t end = std::min(begin + step, queries), steps = end - begin;
    const auto slice = [&](const Tensor& t) { return by_key_head(t.slice(1, begin, end), key_heads, wide); };
    const auto q_run = slice(q), dout_run = slice(dout);
    const auto delta = (slice(out) * dout_run).sum(-1, /*keepdim=*/true);
    const auto row_lse = lse.slice(2, begin, end).reshape({batch * key_heads, heads / key_heads * steps, 1});
    Tensor capped;
    const auto seen = visible(q, k, segments_q, segments_k, o, begin, end);
    const auto scores = scores_of(q_run, k_wide, seen, o, batch, steps, &capped);
    const auto p = at::exp(scores - row_lse.masked_fill(row_lse.isneginf(), 0.0));
    dv.baddbmm_(p.transpose(1, 2), dout_run);
    auto ds = p.mul(at::bmm(dout_run, v_wide.transpose(1, 2)).sub_(delta)).mul_(scale);
    if (softcap > 0) ds.mul_(1.0 - capped.square());
    dq.slice(1, begin, end).copy_(by_step(at::bmm(ds, k_wide), batch, key_heads, steps, q.scalar_type()));
    dk.baddbmm_(ds.transpose(1, 2), q_run);
    if (q.is_meta()) break;
  }
  const int64_t keys = k.size(1);
  return {dq, by_step(dk, batch, key_heads, keys, k.scalar_type()),
          by_step(dv, batch, key_heads, keys, v.scalar_type())};
}

namespace {

std::tuple<Tensor, Tensor> attention_forward_cuda(const Tensor& q, const Tensor& k, const Tensor& v,
                                                  const OptionalTensor& segments_q, const OptionalTensor& segments_k,
                                                  double scale, bool causal, int64_t window, double softcap,
                                                  const OptionalTensor& runs) {
  if (flash_attention_3_serves(q, k, v, segments_q, segments_k, runs, softcap)) {
    check_attention(q, k, v, segments_q, segments_k, window, softcap);
    return flash_attention_3_forward(q, k, v, segments_q, runs, scale, causal, window, softcap);
  }
  if (!flash_attention_serves(q, k, v, segments_q, segments_k, runs, softcap)) {
    return composed_attention_forward(q, k, v, segments_q, segments_k, scale, causal, window, softcap);
  }
  check_attention(q, k, v, segments_q, segments_k, window, softcap);
  return flash_attention_forward(q, k, v, segments_q, runs, scale, causal, window);
}

std::tuple<Tensor, Tensor, Tensor> attention_backward_cuda(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                           const Tensor& v, const Tensor& out, const Tensor& lse,
                                                           const OptionalTensor& segments_q,
                                                           const OptionalTensor& segments_k, double scale, bool causal,
                                                           int64_t window, double softcap, const OptionalTensor& runs) {
  if (flash_attention_3_serves(q, k, v, segments_q, segments_k, runs, softcap)) {
    return flash_attention_3_backward(dout, q, k, v, out, lse, segments_q, runs, scale, causal, window, softcap);
  }
  if (!flash_attention_serves(q, k, v, segments_q, segments_k, runs, softcap)) {
    return composed_attention_backward(dout, q, k, v, out, lse, segments_q, segments_k, scale, causal, window, softcap);
  }
  return flash_attention_backward(dout, q, k, v, out, lse, segments_q, runs, scale, causal, window);
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("attention_forward", &attention_forward_cuda);
  m.impl("attention_backward", &attention_backward_cuda);
}

}  // namespace limbeck::kernels
