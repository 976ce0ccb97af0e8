// FlashAttention 3 by the library that LIMBECK_FLASH_ATTENTION_3 names: on a GPU the real one, on the fake device the
// stand-in of tests/fake_cuda/.
#include "kernels/attention/flash_attention_3.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "tests/kernels/attention_cases.h"
#include "tests/kernels/gpu_case.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

class InUse {
 public:
  explicit InUse(const char* library) { use_flash_attention_3(library); }
  ~InUse() { use_flash_attention_3(""); }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;
};

#define LIMBECK_NEEDS_FLASH_ATTENTION_3()                                                            \
  LIMBECK_NEEDS_GPU();                                                                               \
  const char* library = std::getenv("LIMBECK_FLASH_ATTENTION_3");                                    \
  if (library == nullptr) GTEST_SKIP() << "LIMBECK_FLASH_ATTENTION_3 names no library";              \
  if (cuda_compute_capability(0) != 90) GTEST_SKIP() << "this GPU is not of compute capability 9.0"; \
  const InUse in_use(library)

bool same_bits(const Results& a, const Results& b) {
  return a.out.equal(b.out) && a.dq.equal(b.dq) && a.dk.equal(b.dk) && a.dv.equal(b.dv);
}

OptionalTensor runs_on_gpu(const Inputs& in) {
  return in.segments_k ? OptionalTensor(runs_of(*in.segments_k).to(at::kCUDA)) : std::nullopt;
}

TEST(FlashAttention3Cuda, MatchesFloat64AndGivesTheSameBitsAgain) {
  LIMBECK_NEEDS_FLASH_ATTENTION_3();
  // One width of each kind of kernel; odd widths and lengths; a head for each key head and many; a cache; one token.
  const std::vector<Case> cases{{2, 130, 130, 6, 2, 64, 64}, {3, 77, 77, 4, 4, 8, 8},    {2, 40, 40, 2, 1, 192, 192},
                                {2, 1, 77, 8, 2, 128, 128},  {2, 30, 77, 4, 2, 96, 96},  {1, 1, 1, 1, 1, 8, 8},
                                {2, 12, 12, 12, 3, 72, 72},  {1, 90, 90, 2, 2, 104, 104}};
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    for (const Case& c : cases) {
      for (const bool segments : {false, true}) {
        if (segments && (c.queries != c.keys || c.keys < 12)) continue;
        if (dtype == at::kHalf && c.depth != 64 && c.depth != 8) continue;
        for (const bool causal : {false, true}) {
          for (const auto& [window, softcap] :
               {std::pair<int64_t, double>{0, 0.0}, {5, 0.0}, {50, 0.0}, {0, 5.0}, {5, 2.0}}) {
            const auto in = make_inputs(c, dtype, segments);
            const auto o = options_of(c, causal, window, softcap);
            const auto gpu = on_gpu(in);
            const auto runs = runs_on_gpu(in);
            const bool serves =
                flash_attention_3_serves(gpu.q, gpu.k, gpu.v, gpu.segments_q, gpu.segments_k, runs, softcap);
            EXPECT_TRUE(serves || softcap > 0);
            const CountCalls calls("flash_attn_3::");
            const auto got = on_cpu(ours(gpu, o, runs)), again = on_cpu(ours(gpu, o, runs));
            expect_close(got, expected(in, o));
            EXPECT_EQ(calls.count(), serves ? 4 : 0);
            EXPECT_TRUE(same_bits(got, again)) << c.depth << " wide, window " << window << ", softcap " << softcap;
          }
        }
      }
    }
  }
}

TEST(FlashAttention3Cuda, WhatItDoesNotServeIsComputedAsWithoutIt) {
  LIMBECK_NEEDS_FLASH_ATTENTION_3();
  struct Other {
    Case shape;
    at::ScalarType dtype;
    bool segments, runs;
    int flash_2;
  };
  for (const Other& other : {Other{{2, 20, 20, 2, 1, 256, 256}, at::kBFloat16, false, false, 2},  // too wide
                             Other{{2, 20, 20, 2, 1, 12, 12}, at::kHalf, false, false, 0},        // no multiple of 8
                             Other{{2, 20, 20, 2, 1, 64, 48}, at::kHalf, false, false, 0},        // other values
                             Other{{2, 20, 20, 2, 1, 64, 64}, at::kFloat, true, true, 0},         // no half type
                             Other{{2, 20, 20, 2, 1, 64, 64}, at::kBFloat16, true, false, 0},     // nobody counted
                             Other{{2, 20, 40, 2, 1, 64, 64}, at::kBFloat16, true, true, 0}}) {   // beside a cache
    const auto in = make_inputs(other.shape, other.dtype, other.segments);
    const auto o = options_of(other.shape, true, 0, 0.0);
    const auto runs = other.runs ? runs_on_gpu(in) : std::nullopt;
    {
      const CountCalls calls("flash_attn_3::");
      expect_close(on_cpu(ours(on_gpu(in), o, runs)), expected(in, o));
      EXPECT_EQ(calls.count(), 0) << other.shape.depth;
    }
    const CountCalls calls("aten::_flash_attention");
    ours(on_gpu(in), o, runs);
    EXPECT_EQ(calls.count(), other.flash_2) << other.shape.depth;
  }
}

// A real library has them or has not; the stand-in both, as it is told.
TEST(FlashAttention3Cuda, SoftcapsOfALibraryWithoutThemAreComputedAsWithoutIt) {
  LIMBECK_NEEDS_FLASH_ATTENTION_3();
  const auto in = make_inputs({2, 20, 20, 2, 1, 64, 64}, at::kBFloat16, false);
  const auto o = options_of({2, 20, 20, 2, 1, 64, 64}, true, 0, 5.0);
  if (!std::string_view(library).ends_with("fake_cuda/flash_attention_3.so")) GTEST_SKIP() << "a real library";
  for (const bool without : {true, false}) {
    if (without) setenv("LIMBECK_FAKE_FLASH_ATTENTION_3_WITHOUT_SOFTCAPS", "1", 1);
    use_flash_attention_3(library);  // and forgets what it was told
    const CountCalls calls("flash_attn_3::");
    expect_close(on_cpu(ours(on_gpu(in), o)), expected(in, o));
    EXPECT_EQ(calls.count(), without ? 1 : 3);  // the question itself
    unsetenv("LIMBECK_FAKE_FLASH_ATTENTION_3_WITHOUT_SOFTCAPS");
  }
}

TEST(FlashAttention3Cuda, ReadsViewsOfAFusedProjectionAndOfACache) {
  LIMBECK_NEEDS_FLASH_ATTENTION_3();
  at::manual_seed(12);
  const int64_t batch = 2, length = 40, heads = 4, depth = 32;
  const auto fused = at::randn({batch, length, 3 * heads, depth}).to(at::kBFloat16).to(at::kCUDA);
  const auto part = [&](int64_t i) { return fused.slice(2, i * heads, (i + 1) * heads).requires_grad_(); };
  const auto dense = [](const Tensor& t) { return t.detach().contiguous().requires_grad_(); };
  const Tensor segments = packed_segments(batch, length),
               dout = at::ones({batch, length, heads, depth}, fused.options());
  const AttentionOptions o{.scale = 0.2};
  for (const bool documents : {false, true}) {
    Inputs views{part(0), part(1), part(2), dout, {}, {}},
        copies{dense(part(0)), dense(part(1)), dense(part(2)), dout, {}, {}};
    const OptionalTensor runs = documents ? OptionalTensor(runs_of(segments).to(at::kCUDA)) : std::nullopt;
    for (Inputs* in : {&views, &copies}) {
      if (documents) in->segments_q = in->segments_k = segments.to(at::kCUDA);
    }
    const Results of_views = ours(views, o, runs);
    EXPECT_TRUE(same_bits(of_views, ours(copies, o, runs)));
    EXPECT_TRUE(of_views.dq.is_contiguous() && of_views.dk.is_contiguous());
  }
  // A cache kept as [B, H, capacity, D]; what lies behind the used part is never read.
  const auto cache = at::full({batch, heads, 100, depth}, std::numeric_limits<float>::quiet_NaN(), fused.options());
  cache.slice(2, 0, length).copy_(part(1).detach().transpose(1, 2));
  const auto used = cache.slice(2, 0, length).transpose(1, 2), v = part(2).detach(), q = part(0).detach();
  EXPECT_TRUE(attention(q, used, v, {}, {}, o).equal(attention(q, part(1).detach(), v, {}, {}, o)));
}

TEST(FlashAttention3Cuda, KeepsWhatTheOtherBodiesKeep) {
  LIMBECK_NEEDS_FLASH_ATTENTION_3();
  const auto in = make_inputs({2, 40, 40, 4, 2, 64, 64}, at::kBFloat16, true);
  const auto forward = c10::Dispatcher::singleton()
                           .findSchemaOrThrow("limbeck::attention_forward", "")
                           .typed<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                             const OptionalTensor&, const OptionalTensor&, double, bool,
                                                             int64_t, double, const OptionalTensor&)>();
  const at::NoGradGuard no_gradient;
  const auto gpu = on_gpu(in);
  const auto [out, lse] = forward.call(gpu.q.detach(), gpu.k.detach(), gpu.v.detach(), gpu.segments_q, gpu.segments_k,
                                       0.125, true, 0, 3.0, runs_on_gpu(in));
  const auto [wanted_out, wanted_lse] = composed_attention_forward(in.q.detach(), in.k.detach(), in.v.detach(),
                                                                   in.segments_q, in.segments_k, 0.125, true, 0, 3.0);
  EXPECT_EQ(lse.sizes(), wanted_lse.sizes());
  EXPECT_EQ(lse.scalar_type(), at::kFloat);
  const Tensor seen = in.segments_q->ne(0).unsqueeze(1).expand_as(wanted_lse);
  EXPECT_LE((lse.cpu() - wanted_lse).masked_select(seen).abs().max().item<double>(), 2e-5);  // sums in another order
}

}  // namespace
}  // namespace limbeck::kernels
