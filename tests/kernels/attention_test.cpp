#include "kernels/attention/attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/attention/attention_operands.h"
#include "tests/kernels/gpu_case.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

struct Case {
  int64_t batch, queries, keys, query_heads, key_heads, depth, value_depth;
};

struct Inputs {
  Tensor q, k, v, dout;
  OptionalTensor segments_q, segments_k;

  std::vector<Tensor> leaves() const { return {q, k, v}; }
};

// Documents of a quarter of the length, padded right in the first row and left in the last.
Tensor packed_segments(int64_t batch, int64_t keys) {
  auto segments = at::arange(keys, at::kLong).mul(4).floor_divide(keys).add(1).to(at::kInt).repeat({batch, 1});
  segments[0].slice(0, keys - std::min<int64_t>(keys, 3)).fill_(0);
  segments[batch - 1].slice(0, 0, 2).fill_(0);
  return segments;
}

Inputs make_inputs(const Case& c, at::ScalarType dtype, bool segments) {
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
Tensor reference(const Inputs& in, const std::vector<Tensor>& qkv, const AttentionOptions& o) {
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
  Tensor out, dq, dk, dv;
};

Results expected(const Inputs& in, const AttentionOptions& o) {
  std::vector<Tensor> wide;
  for (const auto& t : in.leaves()) wide.push_back(t.detach().to(at::kDouble).requires_grad_());
  const auto out = reference(in, wide, o);
  const auto g = torch::autograd::grad({out}, wide, {in.dout.to(at::kDouble)});
  return {out.detach(), g[0], g[1], g[2]};
}

Results ours(const Inputs& in, const AttentionOptions& o, const OptionalTensor& runs = {}) {
  const auto out = attention(in.q, in.k, in.v, in.segments_q, in.segments_k, o, runs);
  const auto g = torch::autograd::grad({out}, in.leaves(), {in.dout});
  return {out.detach(), g[0], g[1], g[2]};
}

// Relative to the largest element of each result. float32 sums of at most some hundreds of terms, in any order: 5e-6;
// storage: half an ulp (2^-9, 2^-12) for the result, and for gradients a second rounding of `out` in delta, which
// cancels against dP: a few times that.
double tolerance(at::ScalarType dtype, bool gradient) {
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

void expect_close(const Tensor& got, const Tensor& want, bool gradient, const char* what) {
  const double scale = std::max(want.abs().max().item<double>(), 1e-3);
  const double error = (got.to(at::kDouble) - want).abs().max().item<double>() / scale;
  EXPECT_LE(error, tolerance(got.scalar_type(), gradient)) << what;
}

void expect_close(const Results& got, const Results& want) {
  expect_close(got.out, want.out, false, "out");
  expect_close(got.dq, want.dq, true, "dq");
  expect_close(got.dk, want.dk, true, "dk");
  expect_close(got.dv, want.dv, true, "dv");
}

AttentionOptions options_of(const Case& c, bool causal, int64_t window, double softcap) {
  return {
      .scale = 1.0 / std::sqrt(static_cast<double>(c.depth)), .causal = causal, .window = window, .softcap = softcap};
}

using Parameters = std::tuple<at::ScalarType, Case, bool, int64_t, double, bool>;
class AttentionValues : public ::testing::TestWithParam<Parameters> {};

TEST_P(AttentionValues, ForwardAndGradientsMatchFloat64) {
  const auto [dtype, c, causal, window, softcap, segments] = GetParam();
  const auto in = make_inputs(c, dtype, segments);
  const auto o = options_of(c, causal, window, softcap);
  const auto got = ours(in, o);
  EXPECT_EQ(got.out.scalar_type(), dtype);
  expect_close(got, expected(in, o));
}

const auto kCases = ::testing::Values(Case{1, 1, 1, 1, 1, 1, 1},        // the smallest
                                      Case{2, 7, 7, 2, 2, 64, 64},      // shorter than a tile
                                      Case{1, 301, 301, 4, 2, 80, 80},  // odd length, several key blocks
                                      Case{2, 130, 300, 6, 1, 64, 48},  // cache before the queries, v of another depth
                                      Case{1, 1, 517, 8, 2, 256, 256},  // one token of decoding
                                      Case{1, 390, 390, 1, 1, 33, 65});
INSTANTIATE_TEST_SUITE_P(All, AttentionValues,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf),
                                            kCases, ::testing::Bool(), ::testing::Values(0, 50),
                                            ::testing::Values(0.0, 5.0), ::testing::Bool()));

// The body under the CUDA key, on this device: one table of expectations for both.
class ComposedAttention : public ::testing::TestWithParam<Parameters> {};

TEST_P(ComposedAttention, MatchesFloat64) {
  const auto [dtype, c, causal, window, softcap, segments] = GetParam();
  const auto in = make_inputs(c, dtype, segments);
  const auto o = options_of(c, causal, window, softcap);
  const auto q = in.q.detach(), k = in.k.detach(), v = in.v.detach();
  const auto [out, lse] =
      composed_attention_forward(q, k, v, in.segments_q, in.segments_k, o.scale, causal, window, softcap);
  const auto [dq, dk, dv] = composed_attention_backward(in.dout, q, k, v, out, lse, in.segments_q, in.segments_k,
                                                        o.scale, causal, window, softcap);
  expect_close({out, dq, dk, dv}, expected(in, o));
}
INSTANTIATE_TEST_SUITE_P(All, ComposedAttention,
                         ::testing::Combine(::testing::Values(at::kFloat, at::kBFloat16, at::kDouble), kCases,
                                            ::testing::Bool(), ::testing::Values(0, 50), ::testing::Values(0.0, 5.0),
                                            ::testing::Bool()));

const Case kLong{2, 333, 333, 4, 2, 64, 64};

TEST(Attention, DecodingOneTokenGivesTheBitsOfTheFullForward) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t window : {0, 100}) {
      const auto in = make_inputs(kLong, dtype, false);
      const auto o = options_of(kLong, true, window, 0);
      const auto full = attention(in.q, in.k, in.v, {}, {}, o);
      for (const int64_t t : {0, 1, 17, 255, 256, 257, 332}) {
        const auto one =
            attention(in.q.slice(1, t, t + 1), in.k.slice(1, 0, t + 1), in.v.slice(1, 0, t + 1), {}, {}, o);
        EXPECT_TRUE(at::equal(one, full.slice(1, t, t + 1))) << "token " << t << " window " << window;
      }
      const auto tail = attention(in.q.slice(1, 200), in.k, in.v, {}, {}, o);
      EXPECT_TRUE(at::equal(tail, full.slice(1, 200)));
    }
  }
}

TEST(Attention, SameBitsForOneAndTwoThreads) {
  const int before = at::get_num_threads();
  const auto in = make_inputs(kLong, at::kBFloat16, true);
  const auto o = options_of(kLong, true, 0, 30.0);
  at::set_num_threads(1);
  const auto one = ours(in, o);
  at::set_num_threads(2);
  const auto two = ours(in, o);
  at::set_num_threads(before);
  EXPECT_TRUE(at::equal(one.out, two.out));
  EXPECT_TRUE(at::equal(one.dq, two.dq));
  EXPECT_TRUE(at::equal(one.dk, two.dk));
  EXPECT_TRUE(at::equal(one.dv, two.dv));
}

TEST(Attention, EvaluationGivesTheBitsOfTheTrainingForward) {
  const auto in = make_inputs(kLong, at::kBFloat16, true);
  const auto o = options_of(kLong, true, 64, 0);
  const auto training = attention(in.q, in.k, in.v, in.segments_q, in.segments_k, o);
  ASSERT_TRUE(training.requires_grad());
  const c10::InferenceMode inference;
  const auto evaluation = attention(in.q, in.k, in.v, in.segments_q, in.segments_k, o);
  EXPECT_TRUE(at::equal(training, evaluation));
}

TEST(Attention, ReadsViewsOfAFusedProjectionAndOfACache) {
  at::manual_seed(12);
  const int64_t batch = 2, length = 40, heads = 4, depth = 32;
  const auto fused = at::randn({batch, length, 3 * heads, depth});
  const auto part = [&](int64_t i) { return fused.slice(2, i * heads, (i + 1) * heads); };
  const AttentionOptions o{.scale = 0.2};
  EXPECT_TRUE(at::equal(attention(part(0), part(1), part(2), {}, {}, o),
                        attention(part(0).contiguous(), part(1).contiguous(), part(2).contiguous(), {}, {}, o)));
  // A cache kept as [B, H, capacity, D]; what lies behind the used part is never touched.
  const auto cache = at::full({2, batch, heads, 100, depth}, std::numeric_limits<float>::quiet_NaN());
  cache[0].slice(2, 0, length).copy_(part(1).transpose(1, 2));
  cache[1].slice(2, 0, length).copy_(part(2).transpose(1, 2));
  const auto used = [&](int64_t i) { return cache[i].slice(2, 0, length).transpose(1, 2); };
  EXPECT_TRUE(
      at::equal(attention(part(0), used(0), used(1), {}, {}, o), attention(part(0), part(1), part(2), {}, {}, o)));
}

TEST(Attention, PaddingRowsGiveZerosAndZeroGradients) {
  auto in = make_inputs({1, 20, 20, 2, 1, 16, 16}, at::kFloat, false);
  auto segments = at::ones({1, 20}, at::kInt);
  segments.slice(1, 0, 6).fill_(0);
  in.segments_q = in.segments_k = segments;
  const auto got = ours(in, {.scale = 0.25});
  EXPECT_TRUE((got.out.slice(1, 0, 6) == 0).all().item<bool>());
  EXPECT_TRUE((got.dq.slice(1, 0, 6) == 0).all().item<bool>());
  EXPECT_TRUE((got.dk.slice(1, 0, 6) == 0).all().item<bool>());
  EXPECT_TRUE((got.dv.slice(1, 0, 6) == 0).all().item<bool>());
  EXPECT_GT(got.dq.slice(1, 7).abs().min().item<double>(), 0);
}

TEST(Attention, PackedDocumentsEqualSeparateOnes) {
  const auto in = make_inputs({1, 300, 300, 2, 2, 64, 64}, at::kFloat, false);
  auto segments = at::ones({1, 300}, at::kInt);
  segments.slice(1, 120).fill_(2);
  const AttentionOptions o{.scale = 0.125};
  const auto packed = attention(in.q, in.k, in.v, segments, segments, o);
  for (const auto& [from, to] : {std::pair<int64_t, int64_t>{0, 120}, {120, 300}}) {
    const auto alone = attention(in.q.slice(1, from, to), in.k.slice(1, from, to), in.v.slice(1, from, to), {}, {}, o);
    EXPECT_LE((packed.slice(1, from, to) - alone).abs().max().item<double>(), 2e-6);
  }
}

TEST(Attention, LargeScoresStayFinite) {
  auto in = make_inputs({1, 70, 70, 1, 1, 64, 64}, at::kFloat, false);
  const AttentionOptions o{.scale = 100.0};
  const auto got = ours(in, o);
  EXPECT_TRUE(got.out.isfinite().all().item<bool>());
  EXPECT_TRUE(got.dq.isfinite().all().item<bool>());
}

TEST(Attention, MetaSavesAndReturnsWhatTheRealOneDoes) {
  const auto in = make_inputs(kLong, at::kBFloat16, true);
  const auto meta = [](const Tensor& t) { return t.detach().to(at::kMeta).requires_grad_(t.requires_grad()); };
  const std::vector<Tensor> qkv{meta(in.q), meta(in.k), meta(in.v)};
  const auto out = attention(qkv[0], qkv[1], qkv[2], meta(*in.segments_q), meta(*in.segments_k), {});
  EXPECT_EQ(out.sizes(), in.dout.sizes());
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  const auto grads = torch::autograd::grad({out}, qkv, {meta(in.dout)});
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(grads[i].sizes(), qkv[i].sizes());
  const auto forward = c10::Dispatcher::singleton().findSchemaOrThrow("limbeck::attention_forward", "");
  const auto call = forward.typed<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                             const OptionalTensor&, const OptionalTensor&, double, bool,
                                                             int64_t, double, const OptionalTensor&)>();
  const auto q = in.q.detach(), k = in.k.detach(), v = in.v.detach();
  const auto [real_out, real_lse] = call.call(q, k, v, {}, {}, 1.0, true, 0, 0.0, {});
  const auto [meta_out, meta_lse] = call.call(meta(q), meta(k), meta(v), {}, {}, 1.0, true, 0, 0.0, {});
  EXPECT_EQ(real_lse.sizes(), meta_lse.sizes());
  EXPECT_EQ(real_lse.scalar_type(), meta_lse.scalar_type());
  EXPECT_EQ(real_lse.scalar_type(), at::kFloat);
  EXPECT_EQ(real_out.strides(), meta_out.strides());
}

TEST(Attention, RefusesMixedAndMisshapenInputs) {
  const auto q = at::ones({1, 4, 4, 8}), k = at::ones({1, 4, 2, 8}), segments = at::ones({1, 4}, at::kInt);
  const auto message = [](const Tensor& a, const Tensor& b, const Tensor& c, const OptionalTensor& s = {},
                          const OptionalTensor& t = {}, const AttentionOptions& o = {}) -> std::string {
    try {
      attention(a, b, c, s, t, o);
    } catch (const c10::Error& e) {
      return e.what_without_backtrace();
    }
    return "accepted";
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  EXPECT_EQ(message(q, k, k), "accepted");
  expect(message(q, k.to(at::kHalf), k), "[attention] k is Half, wanted Float");
  expect(message(q, k, k.to(at::kBFloat16)), "[attention] v is BFloat16, wanted Float");
  expect(message(q, k.to(at::kMeta), k), "[attention] k is on meta, wanted cpu");
  expect(message(q.slice(2, 0, 3), k, k), "[attention] q has 3 heads, wanted a multiple of the 2");
  expect(message(q, k.slice(1, 0, 3), k.slice(1, 0, 3)), "wanted at least as many keys as 4 queries");
  expect(message(q, k, k, segments), "wanted both or none");
  expect(message(q, k, k, segments, segments.to(at::kLong)), "[attention] segments_k is Long, wanted int32");
  expect(message(q, k, k, segments.slice(1, 0, 3), segments), "[attention] segments_q is [1, 3], wanted [1, 4]");
  expect(message(q, k, k, {}, {}, {.window = -1}), "[attention] window is -1");
  expect(message(q, k, k, {}, {}, {.softcap = -1}), "[attention] softcap is -1");
}

TEST(Attention, SecondDerivativesAreRefused) {
  const auto in = make_inputs({1, 4, 4, 1, 1, 8, 8}, at::kFloat, false);
  const auto out = attention(in.q, in.k, in.v, {}, {}, {});
  const auto dq = torch::autograd::grad({out}, {in.q}, {in.dout}, std::nullopt, /*create_graph=*/true)[0];
  EXPECT_THROW(torch::autograd::grad({dq.sum()}, {in.k}), c10::Error);
}

Inputs on_gpu(const Inputs& in) {
  Inputs gpu = in;
  for (Tensor* t : {&gpu.q, &gpu.k, &gpu.v}) *t = t->detach().to(at::kCUDA).requires_grad_();
  gpu.dout = in.dout.to(at::kCUDA);
  if (!in.segments_k) return gpu;
  gpu.segments_k = in.segments_k->to(at::kCUDA);
  gpu.segments_q = gpu.segments_k->slice(1, in.k.size(1) - in.q.size(1));
  return gpu;
}

Results on_cpu(const Results& r) { return {r.out.cpu(), r.dq.cpu(), r.dk.cpu(), r.dv.cpu()}; }

// Calls of ATen's flash attention, forward and backward, on any thread.
std::atomic<int> flash_calls = 0;

class CountFlashCalls {
 public:
  CountFlashCalls() {
    flash_calls = 0;
    handle_ = at::addGlobalCallback(at::RecordFunctionCallback([](const at::RecordFunction& function) {
                                      if (std::string(function.name()).starts_with("aten::_flash_attention")) {
                                        ++flash_calls;
                                      }
                                      return std::unique_ptr<at::ObserverContext>();
                                    }).scopes({at::RecordScope::FUNCTION}));
  }
  ~CountFlashCalls() { at::removeCallback(handle_); }
  CountFlashCalls(const CountFlashCalls&) = delete;
  CountFlashCalls& operator=(const CountFlashCalls&) = delete;

 private:
  at::CallbackHandle handle_ = 0;
};

TEST(AttentionCuda, MatchesFloat64) {
  LIMBECK_NEEDS_GPU();
  const CountFlashCalls count;
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Case c{2, 130, 300, 6, 2, 64, 64};
    const auto in = make_inputs(c, dtype, true);
    const auto o = options_of(c, true, 50, 5.0);
    expect_close(on_cpu(ours(on_gpu(in), o)), expected(in, o));
  }
  EXPECT_EQ(flash_calls, 0);  // float32, a softcap, a cache
}

// Where the runs of packed_segments() begin and end; two more runs than there are, which are empty.
Tensor runs_of(const Tensor& segments) {
  std::vector<int> ends;
  for (int64_t i = 0; i < segments.numel(); ++i) {
    const int* at = segments.const_data_ptr<int>() + i;
    if (i % segments.size(1) == 0 || at[0] != at[-1]) ends.push_back(static_cast<int>(i));
  }
  ends.insert(ends.end(), 3, static_cast<int>(segments.numel()));
  return at::tensor(ends, at::kInt);
}

TEST(AttentionCuda, FlashMatchesFloat64AndGivesTheSameBitsAgain) {
  LIMBECK_NEEDS_GPU();
  const std::vector<Case> cases{{2, 130, 130, 6, 2, 64, 64}, {3, 77, 77, 4, 4, 8, 8},   {2, 40, 40, 2, 1, 256, 256},
                                {2, 1, 77, 8, 2, 128, 128},  {2, 30, 77, 4, 2, 64, 64}, {1, 1, 1, 1, 1, 8, 8},
                                {2, 12, 12, 12, 3, 72, 72}};
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    for (const Case& c : cases) {
      for (const bool segments : {false, true}) {
        if (segments && (c.queries != c.keys || c.keys < 12)) continue;
        for (const bool causal : {false, true}) {
          for (const int64_t window : {0, 5, 50}) {
            const CountFlashCalls count;
            const auto in = make_inputs(c, dtype, segments);
            const auto o = options_of(c, causal, window, 0.0);
            const OptionalTensor runs = segments ? OptionalTensor(runs_of(*in.segments_k).to(at::kCUDA)) : std::nullopt;
            const auto gpu = on_gpu(in);
            const auto got = on_cpu(ours(gpu, o, runs)), again = on_cpu(ours(gpu, o, runs));
            expect_close(got, expected(in, o));
            EXPECT_EQ(flash_calls, 4);
            EXPECT_TRUE(got.out.equal(again.out) && got.dq.equal(again.dq) && got.dk.equal(again.dk) &&
                        got.dv.equal(again.dv));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace limbeck::kernels
