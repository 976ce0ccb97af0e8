#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "kernels/attention/attention_loops.h"
#include "kernels/attention/attention_operands.h"
#include "kernels/cpu/scratch_buffer.h"
#include "kernels/operator/checks.h"
#include "kernels/operator/wide_type.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {
namespace {

using at::Tensor;

// Runs of unequal cost: each thread takes the next one when it is free. The results do not depend on who does what.
template <class Work>
void take_turns(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t threads = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), count);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
  });
}

Tensor rows_contiguous(const Tensor& t) { return t.stride(3) == 1 || t.size(3) == 1 ? t : t.contiguous(); }
OptionalTensor contiguous(const OptionalTensor& t) { return t ? OptionalTensor(t->contiguous()) : std::nullopt; }

template <class T>
HeadView<const T> reading(const Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}
template <class T>
HeadView<T> writing(Tensor& t) {
  return {static_cast<T*>(t.mutable_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}

AttentionShape shape_of(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& segments_q,
                        const OptionalTensor& segments_k, double scale, bool causal, int64_t window, double softcap) {
  return {.batch = q.size(0),
          .queries = q.size(1),
          .keys = k.size(1),
          .query_heads = q.size(2),
          .key_heads = k.size(2),
          .depth = q.size(3),
          .value_depth = v.size(3),
          .scale = scale,
          .softcap = softcap,
          .causal = causal,
          .window = window,
          .segments_q = segments_q ? segments_q->const_data_ptr<int32_t>() : nullptr,
          .segments_k = segments_k ? segments_k->const_data_ptr<int32_t>() : nullptr};
}

// Queries of one run: enough rows to pay for widening the keys, few enough that every thread gets some runs.
int64_t queries_per_run(const AttentionShape& s) {
  constexpr int64_t kMostRows = 336, kLeastRows = 84;
  const int64_t wanted = 4 * at::get_num_threads();
  int64_t rows = kMostRows;
  const auto runs = [&] { return s.batch * s.key_heads * (s.queries * s.group() + rows - 1) / rows; };
  while (rows > kLeastRows && runs() < wanted) rows /= 2;
  return std::max<int64_t>(rows / s.group(), 1);
}

template <class T>
const AttentionRuns<T>& runs() {
  return attention_loops_here();
}

template <class T>
void run_forward(const AttentionForward<T>& f) {
  const auto& s = f.shape;
  const int64_t step = queries_per_run(s), heads = s.batch * s.key_heads;
  const int64_t blocks = (s.queries + step - 1) / step;
  take_turns(blocks * heads, [&](int64_t i) {
    const int64_t q0 = (blocks - 1 - i / heads) * step;  // causal: the last queries see most, so they go first
    const int64_t b = i % heads / s.key_heads, head = i % s.key_heads;
    runs<T>().forward(f, b, head, q0, std::min(q0 + step, s.queries));
  });
}

template <class T>
void run_backward(const AttentionBackward<T>& f) {
  const auto& s = f.shape;
  take_turns(s.batch * s.key_heads, [&](int64_t i) { runs<T>().backward(f, i / s.key_heads, i % s.key_heads); });
}

std::tuple<Tensor, Tensor> attention_forward_cpu(const Tensor& q, const Tensor& k, const Tensor& v,
                                                 const OptionalTensor& segments_q, const OptionalTensor& segments_k,
                                                 double scale, bool causal, int64_t window, double softcap,
                                                 const OptionalTensor&) {
  check_attention(q, k, v, segments_q, segments_k, window, softcap);
  auto out = at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
  auto lse = at::empty({q.size(0), q.size(2), q.size(1)}, q.options().dtype(wide_type(q)));
  if (out.numel() == 0) return {out, lse};
  const auto q_rows = rows_contiguous(q), k_rows = rows_contiguous(k), v_rows = rows_contiguous(v);
  const auto own = contiguous(segments_q), theirs = contiguous(segments_k);
  const auto shape = shape_of(q, k, v, own, theirs, scale, causal, window, softcap);
  with_storage(storage_of(q), [&](auto tag) {
    using T = typename decltype(tag)::Type;
    run_forward<T>({shape, reading<T>(q_rows), reading<T>(k_rows), reading<T>(v_rows), writing<T>(out),
                    lse.mutable_data_ptr<Compute<T>>(), &ScratchBuffer<AttentionForward<T>>::at_least});
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward_cpu(const Tensor& dout, const Tensor& q, const Tensor& k,
                                                          const Tensor& v, const Tensor& out, const Tensor& lse,
                                                          const OptionalTensor& segments_q,
                                                          const OptionalTensor& segments_k, double scale, bool causal,
                                                          int64_t window, double softcap, const OptionalTensor&) {
  check_attention(q, k, v, segments_q, segments_k, window, softcap);
  TORCH_CHECK(
      dout.sizes() == out.sizes() && dout.scalar_type() == q.scalar_type() && out.scalar_type() == q.scalar_type(),
      "[attention] gradient is ", dout.scalar_type(), " ", dout.sizes(), ", wanted ", q.scalar_type(), " ",
      out.sizes());
  TORCH_CHECK(lse.scalar_type() == wide_type(q) && lse.numel() == q.size(0) * q.size(1) * q.size(2),
              "[attention] lse is ", lse.scalar_type(), " ", lse.sizes(), ", wanted ", wide_type(q), " [B, Hq, T]");
  auto dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  auto dv = at::empty(v.sizes(), v.options());
  if (out.numel() == 0) return {dq.zero_(), dk.zero_(), dv.zero_()};
  const auto q_rows = rows_contiguous(q), k_rows = rows_contiguous(k), v_rows = rows_contiguous(v);
  const auto out_rows = rows_contiguous(out), dout_rows = rows_contiguous(dout), lse_rows = lse.contiguous();
  const auto own = contiguous(segments_q), theirs = contiguous(segments_k);
  const auto shape = shape_of(q, k, v, own, theirs, scale, causal, window, softcap);
  with_storage(storage_of(q), [&](auto tag) {
    using T = typename decltype(tag)::Type;
    run_backward<T>({shape, reading<T>(q_rows), reading<T>(k_rows), reading<T>(v_rows), reading<T>(out_rows),
                     reading<T>(dout_rows), lse_rows.const_data_ptr<Compute<T>>(), writing<T>(dq), writing<T>(dk),
                     writing<T>(dv), &ScratchBuffer<AttentionBackward<T>>::at_least});
  });
  return {dq, dk, dv};
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("attention_forward", &attention_forward_cpu);
  m.impl("attention_backward", &attention_backward_cpu);
}

}  // namespace limbeck::kernels
