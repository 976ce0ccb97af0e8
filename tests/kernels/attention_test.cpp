#include "kernels/attention/attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/attention/attention_operands.h"
#include "tests/kernels/attention_cases.h"
#include "tests/kernels/gpu_case.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

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

TEST(AttentionCuda, MatchesFloat64) {
  LIMBECK_NEEDS_GPU();
  const CountCalls flash("aten::_flash_attention");
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const Case c{2, 130, 300, 6, 2, 64, 64};
    const auto in = make_inputs(c, dtype, true);
    const auto o = options_of(c, true, 50, 5.0);
    expect_close(on_cpu(ours(on_gpu(in), o)), expected(in, o));
  }
  EXPECT_EQ(flash.count(), 0);  // float32, a softcap, a cache
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
            const CountCalls flash("aten::_flash_attention");
            const auto in = make_inputs(c, dtype, segments);
            const auto o = options_of(c, causal, window, 0.0);
            const OptionalTensor runs = segments ? OptionalTensor(runs_of(*in.segments_k).to(at::kCUDA)) : std::nullopt;
            const auto gpu = on_gpu(in);
            const auto got = on_cpu(ours(gpu, o, runs)), again = on_cpu(ours(gpu, o, runs));
            expect_close(got, expected(in, o));
            EXPECT_EQ(flash.count(), 4);
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
