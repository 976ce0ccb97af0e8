// Cases of attention, their definition in float64, and what both say of outputs and gradients.
#pragma once
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_operands.h"

namespace limbeck::kernels {

struct Case {
  int64_t batch, queries, keys, query_heads, key_heads, depth, value_depth;
};

struct Inputs {
  at::Tensor q, k, v, dout;
  OptionalTensor segments_q, segments_k;

  std::vector<at::Tensor> leaves() const { return {q, k, v}; }
};

// Documents of a quarter of the length, padded right in the first row and left in the last.
inline at::Tensor packed_segments(int64_t batch, int64_t keys) {
  auto segments = at::arange(keys, at::kLong).mul(4).floor_divide(keys).add(1).to(at::kInt).repeat({batch, 1});
  segments[0].slice(0, keys - std::min<int64_t>(keys, 3)).fill_(0);
  segments[batch - 1].slice(0, 0, 2).fill_(0);
  return segments;
}

inline Inputs make_inputs(const Case& c, at::ScalarType dtype, bool segments) {
  at::manual_seed(11);
  const auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes, at::kDouble).to(dtype); };
  Inputs in;
  in.q = random({c.batch, c.queries, c.query_heads, c.depth}).requires_grad_();
  in.k = random({c.batch, c.keys, c.key_heads, c.depth}).requires_grad_();
  in.v = random({c.batch, c.keys, c.key_heads, c.value_depth}).requires_grad_();
  in.dout = random({c.batch, c.queries, c.query_heads, c.value_depth});
  if (segments) {
    in.segments_k = packed_segments(c.batch, c.keys);
    in.segments_q = in.segments_k->slice(1, c.keys - c.queries);
  }
  return in;
}

// The definition, in float64, with the mask written out.
inline at::Tensor reference(const Inputs& in, const std::vector<at::Tensor>& qkv, const AttentionOptions& o) {
  const auto &q = qkv[0], &k = qkv[1], &v = qkv[2];
  const int64_t queries = q.size(1), keys = k.size(1), group = q.size(2) / k.size(2);
  auto scores = at::matmul(q.transpose(1, 2), k.repeat_interleave(group, 2).permute({0, 2, 3, 1})) * o.scale;
  if (o.softcap > 0) scores = at::tanh(scores / o.softcap) * o.softcap;
  const auto own = at::arange(keys - queries, keys).unsqueeze(1), other = at::arange(keys).unsqueeze(0);
  auto seen = at::ones({1, 1, queries, keys}, at::kBool);
  if (o.causal) seen = seen.logical_and(other <= own);
  if (o.window > 0) seen = seen.logical_and(own - other < o.window);
  if (o.window > 0 && !o.causal) seen = seen.logical_and(other - own < o.window);
  if (in.segments_q) {
    const auto same = in.segments_q->unsqueeze(2) == in.segments_k->unsqueeze(1);
    seen = seen.logical_and(same.logical_and(in.segments_q->unsqueeze(2) != 0).unsqueeze(1));
  }
  scores = scores.masked_fill(seen.logical_not(), -1e300);  // finite: a row that sees nothing stays differentiable
  const auto p = at::softmax(scores, -1).masked_fill(seen.logical_not(), 0.0);
  return at::matmul(p, v.repeat_interleave(group, 2).transpose(1, 2)).transpose(1, 2);
}

struct Results {
  at::Tensor out, dq, dk, dv;
};

inline Results expected(const Inputs& in, const AttentionOptions& o) {
  std::vector<at::Tensor> wide;
  for (const auto& t : in.leaves()) wide.push_back(t.detach().to(at::kDouble).requires_grad_());
  const auto out = reference(in, wide, o);
  const auto g = torch::autograd::grad({out}, wide, {in.dout.to(at::kDouble)});
  return {out.detach(), g[0], g[1], g[2]};
}

inline Results ours(const Inputs& in, const AttentionOptions& o, const OptionalTensor& runs = {}) {
  const auto out = attention(in.q, in.k, in.v, in.segments_q, in.segments_k, o, runs);
  const auto g = torch::autograd::grad({out}, in.leaves(), {in.dout});
  return {out.detach(), g[0], g[1], g[2]};
}

// Relative to the largest element of each result. float32 sums of at most some hundreds of terms, in any order: 5e-6;
// storage: half an ulp (2^-9, 2^-12) for the result, and for gradients a second rounding of `out` in delta, which
// cancels against dP: a few times that.
inline double tolerance(at::ScalarType dtype, bool gradient) {
  switch (dtype) {
    case at::kDouble:
      return 1e-13;
    case at::kBFloat16:
      return gradient ? 0x1p-6 : 0x1p-8;
    case at::kHalf:
      return gradient ? 0x1p-9 : 0x1p-11;
    default:
      return 5e-6;
  }
}

inline void expect_close(const at::Tensor& got, const at::Tensor& want, bool gradient, const char* what) {
  const double scale = std::max(want.abs().max().item<double>(), 1e-3);
  const double error = (got.to(at::kDouble) - want).abs().max().item<double>() / scale;
  EXPECT_LE(error, tolerance(got.scalar_type(), gradient)) << what;
}

inline void expect_close(const Results& got, const Results& want) {
  expect_close(got.out, want.out, false, "out");
  expect_close(got.dq, want.dq, true, "dq");
  expect_close(got.dk, want.dk, true, "dk");
  expect_close(got.dv, want.dv, true, "dv");
}

inline AttentionOptions options_of(const Case& c, bool causal, int64_t window, double softcap) {
  return {
      .scale = 1.0 / std::sqrt(static_cast<double>(c.depth)), .causal = causal, .window = window, .softcap = softcap};
}

inline Inputs on_gpu(const Inputs& in) {
  Inputs gpu = in;
  for (at::Tensor* t : {&gpu.q, &gpu.k, &gpu.v}) *t = t->detach().to(at::kCUDA).requires_grad_();
  gpu.dout = in.dout.to(at::kCUDA);
  if (!in.segments_k) return gpu;
  gpu.segments_k = in.segments_k->to(at::kCUDA);
  gpu.segments_q = gpu.segments_k->slice(1, in.k.size(1) - in.q.size(1));
  return gpu;
}

inline Results on_cpu(const Results& r) { return {r.out.cpu(), r.dq.cpu(), r.dk.cpu(), r.dv.cpu()}; }

// Where the runs of packed_segments() begin and end; two more runs than there are, which are empty.
inline at::Tensor runs_of(const at::Tensor& segments) {
  std::vector<int> ends;
  for (int64_t i = 0; i < segments.numel(); ++i) {
    const int* at = segments.const_data_ptr<int>() + i;
    if (i % segments.size(1) == 0 || at[0] != at[-1]) ends.push_back(static_cast<int>(i));
  }
  ends.insert(ends.end(), 3, static_cast<int>(segments.numel()));
  return at::tensor(ends, at::kInt);
}

// Calls of operators whose names begin so, forward and backward, on any thread, while it lives. One at a time.
class CountCalls {
 public:
  explicit CountCalls(std::string_view begin) {
    wanted() = begin;
    calls() = 0;
    handle_ = at::addGlobalCallback(at::RecordFunctionCallback([](const at::RecordFunction& function) {
                                      if (std::string_view(function.name()).starts_with(wanted())) ++calls();
                                      return std::unique_ptr<at::ObserverContext>();
                                    }).scopes({at::RecordScope::FUNCTION}));
  }
  ~CountCalls() { at::removeCallback(handle_); }
  CountCalls(const CountCalls&) = delete;
  CountCalls& operator=(const CountCalls&) = delete;

  int count() const { return calls(); }

 private:
  static std::string& wanted() {
    static std::string begin;
    return begin;
  }
  static std::atomic<int>& calls() {
    static std::atomic<int> number = 0;
    return number;
  }

  at::CallbackHandle handle_ = 0;
};

}  // namespace limbeck::kernels
