#include "kernels/head_loss/head_loss.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <tuple>
#include <utility>

#include "kernels/gpu_case.h"
#include "kernels/head_loss/head_loss_cpu.h"
#include "kernels/head_loss/head_loss_signature.h"
#include "kernels/operator/operator_handle.h"
#include "support/cpu_memory.h"
#include "support/head_loss_reference.h"
#include "support/operator_checks.h"

namespace limbeck::test {
namespace {

using at::Tensor;
using kernels::Divergence;
using kernels::HeadLossOptions;
using kernels::HeadLossPath;

constexpr std::array kAll = {Divergence::kForwardKl,     Divergence::kReverseKl,     Divergence::kJensenShannon,
                             Divergence::kSkewForwardKl, Divergence::kSkewReverseKl, Divergence::kTotalVariation,
                             Divergence::kLogitMse};

struct PathScope {
  explicit PathScope(HeadLossPath path) { kernels::set_head_loss_path(path); }
  ~PathScope() { kernels::set_head_loss_path(HeadLossPath::kAutomatic); }
};

std::string divergence_text(Divergence d) { return std::string(kernels::divergence_name(d)); }

// One rounding of each gradient and one of dz to the storage dtype, each 2^-9 (2^-12) of a number at most; in float32
// the rounding of the logits, divided by the noise.
double gradient_tolerance(at::ScalarType type) { return type == at::kFloat ? 1e-5 : type == at::kHalf ? 1e-3 : 5e-3; }

HeadCase on_gpu(const HeadCase& c) {
  const auto there = [](const Tensor& t) { return t.to(at::kCUDA); };
  return {there(c.student_hidden),
          there(c.student_weight),
          there(c.teacher_hidden),
          there(c.teacher_weight),
          c.labels ? std::optional<Tensor>(there(*c.labels)) : std::nullopt,
          there(c.divergence_weight),
          there(c.ce_weight)};
}

HeadNumbers on_cpu(const HeadNumbers& n) {
  const auto here = [](const Tensor& t) { return t.defined() ? t.cpu() : t; };
  return {here(n.loss), here(n.divergence), here(n.cross_entropy), here(n.hidden_gradient), here(n.weight_gradient)};
}

class HeadLossGate : public testing::TestWithParam<std::tuple<Divergence, at::ScalarType>> {
 protected:
  static void expect_float64s_numbers(int64_t vocabulary, bool gpu) {
    const auto [divergence, dtype] = GetParam();
    for (const double noise : {0.02, 0.1, 0.5}) {
      // Logits of size 0.5: rounding float32 logits correctly costs 2^-25 of each, so at noise 0.02 any larger logits
      // would put the rounding of the operands of the divergence above the 1e-5 that its gradient is held to.
      auto c = head_case(/*tokens=*/70, vocabulary, /*width=*/64, /*size=*/0.5, noise, dtype, dtype);
      c.labels.reset();
      // Float16 gradients below 6e-5 lose bits; a loss scale is there to prevent that.
      const double scale = dtype == at::kHalf ? 4096.0 : 1.0;
      const HeadLossOptions options{
          .divergence = divergence, .mix = 0.3, .vocabulary = vocabulary, .gradient_scale = scale};
      const auto got = gpu ? on_cpu(fused_head_loss(on_gpu(c), options)) : fused_head_loss(c, options);
      const auto want = reference_head_loss(c, options);
      const std::string what = divergence_text(divergence) + ", noise " + std::to_string(noise);
      EXPECT_LE(relative_distance(got.loss, want.loss), 2e-5) << what;
      EXPECT_LE(relative_distance(got.divergence, want.divergence), 2e-5) << what;
      EXPECT_GE(got.divergence.min().item<float>(), 0.0f) << what;
      EXPECT_LE(relative_distance(got.hidden_gradient, want.hidden_gradient * scale), gradient_tolerance(dtype))
          << what;
      EXPECT_LE(relative_distance(got.weight_gradient, want.weight_gradient * scale), gradient_tolerance(dtype))
          << what;
    }
  }
};

TEST_P(HeadLossGate, cpu_ValuesAndGradientsAreThoseOfFloat64) {
  for (const auto path : {HeadLossPath::kKept, HeadLossPath::kAnew}) {
    const PathScope scope(path);
    expect_float64s_numbers(/*vocabulary=*/700, /*gpu=*/false);
  }
}

TEST_P(HeadLossGate, cuda_ValuesAndGradientsAreThoseOfFloat64) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t vocabulary : {700, 701, 33}) expect_float64s_numbers(vocabulary, /*gpu=*/true);
}

INSTANTIATE_TEST_SUITE_P(
    All, HeadLossGate, testing::Combine(testing::ValuesIn(kAll), testing::Values(at::kFloat, at::kBFloat16, at::kHalf)),
    [](const auto& which) {
      return divergence_text(std::get<0>(which.param)) + "_" + c10::toString(std::get<1>(which.param));
    });

HeadLossOptions every_option(Divergence divergence) {
  return {.divergence = divergence,
          .mix = 0.3,
          .temperature = 2.0,
          .student_softcap = 3.0,
          .teacher_softcap = 4.0,
          .student_scale = 0.7,
          .teacher_scale = 1.3,
          .clamp = 0.8,
          .label_smoothing = 0.1,
          .vocabulary = 500,
          .gradient_scale = 1.0};
}

HeadCase mixed_case(at::ScalarType student, at::ScalarType teacher) {
  auto c = head_case(/*tokens=*/45, /*vocabulary=*/500, /*width=*/37, /*size=*/2.0, /*noise=*/1.0, student, teacher);
  c.labels->select(0, 3).fill_(-100);
  c.divergence_weight.select(0, 4).fill_(0.0);
  c.ce_weight.select(0, 5).fill_(0.0);
  c.divergence_weight.narrow(0, 8, 9).fill_(0.0);
  c.ce_weight.narrow(0, 8, 9).fill_(0.0);
  return c;
}

void expect_close_to_reference(const HeadNumbers& got, const HeadNumbers& want, double values, double gradients,
                               const std::string& what) {
  EXPECT_LE(relative_distance(got.loss, want.loss), values) << what;
  EXPECT_LE(relative_distance(got.divergence, want.divergence), values) << what;
  EXPECT_LE(relative_distance(got.cross_entropy, want.cross_entropy), values) << what;
  EXPECT_LE(relative_distance(got.hidden_gradient, want.hidden_gradient), gradients) << what;
  EXPECT_LE(relative_distance(got.weight_gradient, want.weight_gradient), gradients) << what;
}

TEST(HeadLoss, cpu_EveryOptionTogetherWithCrossEntropyAndMixedDtypes) {
  for (const auto student : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto teacher : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto c = mixed_case(student, teacher);
      for (const auto divergence : kAll) {
        const auto options = every_option(divergence);
        expect_close_to_reference(
            fused_head_loss(c, options), reference_head_loss(c, options), 3e-6, gradient_tolerance(student),
            divergence_text(divergence) + " of " + c10::toString(student) + c10::toString(teacher));
      }
    }
  }
}

TEST(HeadLoss, cpu_CrossEntropyAloneAndBesideADivergenceThatSharesItsSoftmax) {
  for (const auto divergence : {Divergence::kNone, Divergence::kForwardKl, Divergence::kJensenShannon}) {
    const auto c = mixed_case(at::kFloat, at::kFloat);
    const HeadLossOptions options{.divergence = divergence, .label_smoothing = 0.2, .vocabulary = 500};
    expect_close_to_reference(fused_head_loss(c, options), reference_head_loss(c, options), 3e-6, 1e-5,
                              divergence_text(divergence));
  }
}

// Probabilities of 1 and of 0: nothing overflows, and nothing is NaN.
TEST(HeadLoss, cpu_DistantDistributionsStayFinite) {
  for (const auto divergence : kAll) {
    auto c = head_case(40, 300, 16, /*size=*/60.0, /*noise=*/90.0, at::kFloat, at::kFloat);
    const HeadLossOptions options{.divergence = divergence, .mix = 0.3, .vocabulary = 300};
    const auto got = fused_head_loss(c, options), want = reference_head_loss(c, options);
    EXPECT_LE(relative_distance(got.loss, want.loss), 1e-5) << divergence_text(divergence);
    EXPECT_LE(relative_distance(got.weight_gradient, want.weight_gradient), 1e-4) << divergence_text(divergence);
    EXPECT_GE(got.divergence.min().item<float>(), 0.0f) << divergence_text(divergence);
  }
}

// Of a mixture that is the other distribution alone, m / p rounds to 0 where the other gives an id no mass.
TEST(HeadLoss, cpu_ASkewWithoutAShareIsThePlainDivergence) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const auto c = head_case(40, 300, 16, /*size=*/60.0, /*noise=*/90.0, dtype, dtype);
    for (const auto& [skew, plain] : {std::pair(Divergence::kSkewForwardKl, Divergence::kForwardKl),
                                      std::pair(Divergence::kSkewReverseKl, Divergence::kReverseKl)}) {
      const auto got = fused_head_loss(c, {.divergence = skew, .mix = 0.0, .vocabulary = 300});
      const auto want = fused_head_loss(c, {.divergence = plain, .vocabulary = 300});
      EXPECT_TRUE(at::isfinite(got.hidden_gradient).all().item<bool>()) << divergence_text(skew);
      expect_same_bits(got.divergence, want.divergence, divergence_text(skew));
      expect_same_bits(got.hidden_gradient, want.hidden_gradient, divergence_text(skew));
      expect_same_bits(got.weight_gradient, want.weight_gradient, divergence_text(skew));
    }
  }
}

TEST(HeadLoss, cpu_IdenticalHeadsWithAPaddedTeacherGiveZero) {
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    auto c = head_case(50, 600, 48, 2.0, 0.0, dtype, dtype);
    c.labels.reset();
    for (const auto divergence : kAll) {
      const auto got = fused_head_loss(c, {.divergence = divergence, .mix = 0.3, .vocabulary = 600});
      EXPECT_EQ(got.loss.item<float>(), 0.0f) << divergence_text(divergence);
      EXPECT_EQ(got.weight_gradient.abs().max().item<float>(), 0.0f) << divergence_text(divergence);
      EXPECT_EQ(got.hidden_gradient.abs().max().item<float>(), 0.0f) << divergence_text(divergence);
    }
  }
}

TEST(HeadLoss, cpu_AFullyMaskedBatchGivesZeroWithZeroGradients) {
  auto c = mixed_case(at::kBFloat16, at::kHalf);
  c.divergence_weight.zero_();
  c.ce_weight.zero_();
  c.student_hidden.fill_(std::numeric_limits<float>::quiet_NaN());  // and nobody looks at the tokens
  const auto got = fused_head_loss(c, every_option(Divergence::kJensenShannon));
  EXPECT_EQ(got.loss.item<float>(), 0.0f);
  EXPECT_TRUE(at::equal(got.hidden_gradient, at::zeros_like(got.hidden_gradient)));
  EXPECT_TRUE(at::equal(got.weight_gradient, at::zeros_like(got.weight_gradient)));
  EXPECT_TRUE(at::equal(got.divergence, at::zeros_like(got.divergence)));
}

TEST(HeadLoss, cpu_MaskedTokensChangeNoBit) {
  const auto c = mixed_case(at::kBFloat16, at::kBFloat16);
  auto noisy = c;
  noisy.student_hidden = c.student_hidden.clone();
  noisy.student_hidden.narrow(0, 8, 9).fill_(std::numeric_limits<float>::quiet_NaN());
  const auto options = every_option(Divergence::kReverseKl);
  const auto a = fused_head_loss(c, options), b = fused_head_loss(noisy, options);
  expect_same_bits(a.loss, b.loss, "loss");
  expect_same_bits(a.weight_gradient, b.weight_gradient, "gradient of the weight");
  expect_same_bits(a.hidden_gradient, b.hidden_gradient, "gradient of the hidden states");
}

TEST(HeadLoss, cpu_EightTimesOneEqualsOneTimesEight) {
  const auto c = head_case(8, 400, 40, 1.0, 0.3, at::kFloat, at::kFloat);
  const HeadLossOptions options{.divergence = Divergence::kForwardKl, .vocabulary = 400};
  const auto whole = fused_head_loss(c, options);
  double loss = 0.0;
  auto weight = at::zeros_like(whole.weight_gradient);
  for (int64_t i = 0; i < 8; ++i) {
    const auto row = [&](const Tensor& t) { return t.narrow(0, i, 1); };
    const auto one = fused_head_loss({row(c.student_hidden), c.student_weight, row(c.teacher_hidden), c.teacher_weight,
                                      row(*c.labels), row(c.divergence_weight), row(c.ce_weight)},
                                     options);
    loss += one.loss.item<double>();
    weight += one.weight_gradient;
    expect_same_bits(one.hidden_gradient, row(whole.hidden_gradient), "gradient of token " + std::to_string(i));
  }
  EXPECT_NEAR(loss, whole.loss.item<double>(), 1e-6 * loss);
  EXPECT_LE(relative_distance(weight, whole.weight_gradient), 1e-6);
}

void expect_same_numbers(const HeadNumbers& a, const HeadNumbers& b, bool gradients, const std::string& what) {
  expect_same_bits(a.loss, b.loss, what + ": loss");
  expect_same_bits(a.divergence, b.divergence, what + ": divergence");
  expect_same_bits(a.cross_entropy, b.cross_entropy, what + ": cross-entropy");
  if (!gradients) return;
  expect_same_bits(a.hidden_gradient, b.hidden_gradient, what + ": gradient of the hidden states");
  expect_same_bits(a.weight_gradient, b.weight_gradient, what + ": gradient of the weight");
}

TEST(HeadLoss, cpu_ThreadsChangeNoBit) {
  const int before = at::get_num_threads();
  for (const auto path : {HeadLossPath::kKept, HeadLossPath::kAnew}) {
    const PathScope scope(path);
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const auto c = head_case(170, 5000, 48, 2.0, 0.5, dtype, dtype);
      HeadLossOptions options{.divergence = Divergence::kJensenShannon, .vocabulary = 5000};
      for (const auto divergence : {Divergence::kJensenShannon, Divergence::kForwardKl}) {
        options.divergence = divergence;
        at::set_num_threads(1);
        const auto one = fused_head_loss(c, options);
        for (const int threads : {2, 3}) {
          at::set_num_threads(threads);
          expect_same_numbers(fused_head_loss(c, options), one, true, std::to_string(threads) + " threads");
        }
      }
    }
  }
  at::set_num_threads(before);
}

TEST(HeadLoss, cpu_EvaluationHasTheBitsOfTraining) {
  for (const auto student : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto teacher : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto c = mixed_case(student, teacher);
      for (const auto divergence : kAll) {
        for (const auto& options :
             {every_option(divergence), HeadLossOptions{.divergence = divergence, .vocabulary = 500}}) {
          const auto training = fused_head_loss(c, options);
          expect_same_numbers(fused_head_loss(c, options, /*gradients=*/false), training, false,
                              divergence_text(divergence));
          const PathScope other(HeadLossPath::kAnew);
          expect_same_numbers(fused_head_loss(c, options, /*gradients=*/false), training, false, "logits made anew");
          const PathScope kept(HeadLossPath::kKept);
          expect_same_numbers(fused_head_loss(c, options), training, false, "kept logits");
        }
      }
    }
  }
}

TEST(HeadLoss, cpu_OnlyTheGradientsAskedForAreMade) {
  const auto c = mixed_case(at::kBFloat16, at::kBFloat16);
  const auto options = every_option(Divergence::kForwardKl);
  const auto both = fused_head_loss(c, options);
  const auto hidden = c.student_hidden.detach().requires_grad_(), weight = c.student_weight.detach().requires_grad_();
  const auto run = [&](const Tensor& h, const Tensor& w, const Tensor& of) {
    const auto loss = kernels::head_loss(h, w, c.teacher_hidden, c.teacher_weight, c.labels, c.divergence_weight,
                                         c.ce_weight, options)
                          .loss;
    return torch::autograd::grad({loss}, {of})[0];
  };
  expect_same_bits(run(hidden, c.student_weight, hidden), both.hidden_gradient, "hidden states alone");
  expect_same_bits(run(c.student_hidden, weight, weight), both.weight_gradient, "weight alone");
  const auto frozen = kernels::head_loss(c.student_hidden, c.student_weight, c.teacher_hidden.detach().requires_grad_(),
                                         c.teacher_weight, c.labels, c.divergence_weight, c.ce_weight, options);
  EXPECT_FALSE(frozen.loss.requires_grad());
}

TEST(HeadLoss, cpu_BackwardScalesByWhatItIsSeededWith) {
  const auto c = mixed_case(at::kHalf, at::kHalf);
  auto options = every_option(Divergence::kForwardKl);
  const auto plain = fused_head_loss(c, options);
  options.gradient_scale = 1024.0;
  const auto scaled = fused_head_loss(c, options);  // seeded with 1024
  EXPECT_LE(relative_distance(scaled.weight_gradient / 1024.0, plain.weight_gradient), 1e-3);
  const auto hidden = c.student_hidden.detach().requires_grad_();
  const auto loss = kernels::head_loss(hidden, c.student_weight, c.teacher_hidden, c.teacher_weight, c.labels,
                                       c.divergence_weight, c.ce_weight, options)
                        .loss;
  for (const double seed : {1024.0, 256.0, 1024.0}) {  // and a graph that is kept gives the same again
    const auto g = torch::autograd::grad({loss}, {hidden}, {at::full({}, seed)}, /*retain_graph=*/true)[0];
    EXPECT_LE(relative_distance(g, scaled.hidden_gradient * (seed / 1024.0)), 1e-6);
  }
  torch::autograd::grad({loss}, {hidden});
  EXPECT_THROW(torch::autograd::grad({loss}, {hidden}), c10::Error);
}

TEST(HeadLoss, cpu_TheCompositionComputesTheSame) {
  for (const auto dtype : {at::kDouble, at::kFloat, at::kHalf}) {
    const auto c = mixed_case(dtype, dtype);
    for (const auto divergence : kAll) {
      for (const bool options_on : {false, true}) {
        const HeadLossOptions plain{.divergence = divergence, .mix = 0.3, .vocabulary = 500};
        const auto options = options_on ? every_option(divergence) : plain;
        const kernels::HeadLossInputs in{c.student_hidden, c.student_weight,    c.teacher_hidden, c.teacher_weight,
                                         c.labels,         c.divergence_weight, c.ce_weight};
        const auto [loss, d, ce, hidden, weight] = kernels::composed_head_loss(in, options, true, true);
        const bool wide = dtype == at::kDouble;
        expect_close_to_reference({loss, d, ce, hidden, weight}, reference_head_loss(c, options), wide ? 1e-12 : 1e-5,
                                  wide ? 1e-11 : gradient_tolerance(dtype), divergence_text(divergence));
      }
    }
  }
}

TEST(HeadLoss, cpu_Float64GoesThroughTheOperator) {
  const auto c = mixed_case(at::kDouble, at::kDouble);
  const auto options = every_option(Divergence::kJensenShannon);
  const auto got = fused_head_loss(c, options);
  EXPECT_EQ(got.loss.scalar_type(), at::kDouble);
  expect_close_to_reference(got, reference_head_loss(c, options), 1e-12, 1e-11, "float64");
}

// ---- memory --------------------------------------------------------------------------------------------------------

TEST(HeadLoss, cpu_ScratchStaysBelow96MegabytesWhateverTheVocabulary) {
  for (const int64_t vocabulary : {32000, 151936}) {
    for (const auto storage : {kernels::Storage::kBFloat16, kernels::Storage::kFloat16, kernels::Storage::kFloat32}) {
      for (const bool two_steps : {false, true}) {
        kernels::HeadShape shape{.tokens = 2048,
                                 .student = kernels::head_operand(storage, 256),
                                 .teacher = kernels::head_operand(storage, 512),
                                 .vocabulary = vocabulary,
                                 .two_steps = two_steps,
                                 .hidden_gradient = true,
                                 .weight_gradient = true,
                                 .threads = 2};
        EXPECT_LE(kernels::head_plan(shape).bytes, 95'000'000);
      }
    }
  }
}

TEST(HeadLoss, cpu_ThePlanIsWhatIsAllocated) {
  for (const auto path : {HeadLossPath::kKept, HeadLossPath::kAnew}) {
    const PathScope scope(path);
    const auto c = head_case(300, 3000, 64, 1.0, 0.3, at::kBFloat16, at::kBFloat16);
    const kernels::HeadLossInputs in{c.student_hidden, c.student_weight,    c.teacher_hidden, c.teacher_weight,
                                     std::nullopt,     c.divergence_weight, c.ce_weight};
    const HeadLossOptions options{.vocabulary = 3000};
    const auto plan = kernels::head_plan(kernels::head_shape(in, options, 300, true, true));
    const auto outputs = static_cast<int64_t>(c.student_hidden.nbytes() + c.student_weight.nbytes());
    const CpuMemory memory;
    const auto results = kernels::head_loss_on_cpu(in, options, true, true);
    EXPECT_GE(memory.peak(), plan.bytes + outputs);
    EXPECT_LE(memory.peak(), plan.bytes + outputs + 16 * 1024);  // lists of tokens and per-token values
    EXPECT_LE(memory.live(), outputs + 8 * 1024);
  }
}

TEST(HeadLoss, cpu_ARunOnCudaHasAtLeast1024TokensAndItsLogitsABound) {
  EXPECT_EQ(kernels::cuda_head_plan(8192, 151936, true).run, 1024);
  EXPECT_EQ(kernels::cuda_head_plan(8192, 32000, true).run, 4096);
  EXPECT_EQ(kernels::cuda_head_plan(8193, 32000, true).run, 4097);
  EXPECT_EQ(kernels::cuda_head_plan(300, 151936, true).run, 300);
  EXPECT_EQ(kernels::cuda_head_plan(0, 151936, false).run, 1);
  EXPECT_EQ(kernels::cuda_head_plan(8192, 151936, true).bytes, 1024 * (151936 * 8 + 36));
}

TEST(HeadLoss, cpu_MetaHasTheShapesOfTheRealOne) {
  const auto c = mixed_case(at::kBFloat16, at::kHalf);
  const auto meta = [](const Tensor& t) { return at::empty(t.sizes(), t.options().device(at::kMeta)); };
  const auto hidden = meta(c.student_hidden).requires_grad_(), weight = meta(c.student_weight).requires_grad_();
  const auto out =
      kernels::head_loss(hidden, weight, meta(c.teacher_hidden), meta(c.teacher_weight), meta(*c.labels),
                         meta(c.divergence_weight), meta(c.ce_weight), every_option(Divergence::kReverseKl));
  EXPECT_TRUE(out.loss.is_meta());
  EXPECT_EQ(out.loss.dim(), 0);
  EXPECT_EQ(out.loss.scalar_type(), at::kFloat);
  EXPECT_EQ(out.divergence_n.sizes(), c.divergence_weight.sizes());
  const auto seed = at::empty({}, out.loss.options().requires_grad(false));
  const auto gradients = torch::autograd::grad({out.loss}, {hidden, weight}, {seed});
  EXPECT_EQ(gradients[0].sizes(), hidden.sizes());
  EXPECT_EQ(gradients[1].sizes(), weight.sizes());
  EXPECT_EQ(gradients[1].scalar_type(), at::kBFloat16);
}

// ---- refusals ------------------------------------------------------------------------------------------------------

std::string refusal(const std::function<void(HeadCase&, HeadLossOptions&)>& spoil) {
  auto c = mixed_case(at::kBFloat16, at::kBFloat16);
  auto options = every_option(Divergence::kForwardKl);
  spoil(c, options);
  try {
    fused_head_loss(c, options);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "";
}

void expect_refused(const std::function<void(HeadCase&, HeadLossOptions&)>& spoil, const std::string& place,
                    const std::string& wanted) {
  const std::string message = refusal(spoil);
  EXPECT_EQ(message.rfind("[head_loss] " + place, 0), 0u) << message;
  EXPECT_NE(message.find(wanted), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(HeadLoss, cpu_RefusesWhatDoesNotFit) {
  expect_refused([](HeadCase& c, auto&) { c.student_weight = c.student_weight.to(at::kHalf); }, "student_weight",
                 "wanted bfloat16");
  expect_refused([](HeadCase& c, auto&) { c.student_hidden = c.student_hidden.narrow(1, 0, 30); }, "student_weight",
                 "wanted [vocabulary, 30]");
  expect_refused([](HeadCase& c, auto&) { c.teacher_hidden = c.teacher_hidden.narrow(0, 0, 30); }, "teacher_hidden",
                 "wanted the tokens of student_hidden");
  expect_refused([](auto&, HeadLossOptions& o) { o.vocabulary = 504; }, "vocabulary is 504", "student_weight");
  expect_refused([](HeadCase& c, auto&) { c.teacher_weight = c.teacher_weight.narrow(0, 0, 499); }, "teacher_weight",
                 "at least 500 rows");
  expect_refused([](HeadCase& c, auto&) { c.ce_weight = c.ce_weight.to(at::kHalf); }, "ce_weight", "wanted Float [45]");
  expect_refused([](HeadCase& c, auto&) { c.labels = c.labels->to(at::kInt); }, "labels", "wanted Long [45]");
  expect_refused([](HeadCase& c, auto&) { c.labels->select(0, 2).fill_(500); }, "the label of token 2 is 500",
                 "0 to 499");
  expect_refused([](auto&, HeadLossOptions& o) { o.temperature = 0.0; }, "temperature is 0", "more than 0");
  expect_refused([](auto&, HeadLossOptions& o) { o.divergence = Divergence::kJensenShannon, o.mix = 1.0; }, "mix is 1",
                 "between 0 and 1");
  for (const auto skew : {Divergence::kSkewForwardKl, Divergence::kSkewReverseKl}) {
    expect_refused([skew](auto&, HeadLossOptions& o) { o.divergence = skew, o.mix = 1e-5; }, "mix is 1e-05",
                   "wanted 0, or 0.0001 to below 1");
  }
  expect_refused([](HeadCase& c, HeadLossOptions& o) { o.divergence = Divergence::kNone, c.labels.reset(); }, "neither",
                 "wanted one of them");
}

// ---- on a GPU ------------------------------------------------------------------------------------------------------

struct RunScope {
  explicit RunScope(int64_t most_tokens) { kernels::set_cuda_head_run(most_tokens); }
  ~RunScope() { kernels::set_cuda_head_run(0); }
};

TEST(HeadLossCuda, EveryPairOfDtypesGivesTheNumbersOfFloat64) {
  LIMBECK_NEEDS_GPU();
  for (const auto& [run, vocabulary] : {std::pair<int64_t, int64_t>(0, 500), {7, 497}}) {
    const RunScope scope(run);
    for (const auto student : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const auto teacher : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
        auto c = mixed_case(student, teacher);
        c.labels->clamp_max_(vocabulary - 1);
        for (const auto divergence : kAll) {
          auto options = every_option(divergence);
          options.vocabulary = vocabulary;
          expect_close_to_reference(
              on_cpu(fused_head_loss(on_gpu(c), options)), reference_head_loss(c, options), 3e-6,
              student == at::kDouble ? 1e-5 : gradient_tolerance(student),
              divergence_text(divergence) + ": " + c10::toString(student) + " of " + c10::toString(teacher));
        }
      }
    }
  }
}

TEST(HeadLossCuda, CrossEntropyAloneAndBesideADivergenceThatSharesItsSoftmax) {
  LIMBECK_NEEDS_GPU();
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto divergence : {Divergence::kNone, Divergence::kForwardKl, Divergence::kJensenShannon}) {
      const auto c = mixed_case(dtype, dtype);
      const HeadLossOptions options{.divergence = divergence, .label_smoothing = 0.2, .vocabulary = 500};
      expect_close_to_reference(on_cpu(fused_head_loss(on_gpu(c), options)), reference_head_loss(c, options), 3e-6,
                                gradient_tolerance(dtype), divergence_text(divergence));
    }
  }
}

// The same numbers in rows that lie apart and begin beside every alignment.
HeadCase apart(const HeadCase& c) {
  const auto within = [](const Tensor& t) {
    auto sizes = t.sizes().vec();
    sizes.back() += 5;
    const Tensor wide = at::full(sizes, NAN, t.options());
    wide.narrow(-1, 3, t.size(-1)).copy_(t);
    return wide.narrow(-1, 3, t.size(-1));
  };
  HeadCase result = c;
  for (Tensor* t : {&result.student_hidden, &result.student_weight, &result.teacher_hidden, &result.teacher_weight,
                    &result.divergence_weight, &result.ce_weight}) {
    *t = within(*t);
  }
  return result;
}

TEST(HeadLossCuda, OperandsMayLieApartAndBeginAnywhere) {
  LIMBECK_NEEDS_GPU();
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto c = mixed_case(dtype, dtype);
    const HeadLossOptions options{.label_smoothing = 0.2, .vocabulary = 500};
    expect_close_to_reference(on_cpu(fused_head_loss(apart(on_gpu(c)), options)), reference_head_loss(c, options), 3e-6,
                              gradient_tolerance(dtype), c10::toString(dtype));
  }
}

// What the body holds on the device at its peak; a call before has made what is made once.
int64_t peak_of_forward(const HeadCase& c, const HeadLossOptions& o, bool hidden, bool weight) {
  constexpr auto kTotal = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  static const auto op =
      kernels::typed_operator<decltype(kernels::flat<kernels::head_loss_on_cpu>)>("limbeck::head_loss_forward");
  const auto call = [&] {
    return op.call(c.student_hidden, c.student_weight, c.teacher_hidden, c.teacher_weight, c.labels,
                   c.divergence_weight, c.ce_weight, kernels::divergence_name(o.divergence), o.mix, o.temperature,
                   o.student_softcap, o.teacher_softcap, o.student_scale, o.teacher_scale, o.clamp, o.label_smoothing,
                   o.vocabulary, o.gradient_scale, hidden, weight);
  };
  call();
  auto* allocator = c10::getDeviceAllocator(at::kCUDA);
  allocator->resetPeakStats(0);
  const int64_t before = allocator->getDeviceStats(0).allocated_bytes[kTotal].current;
  call();
  return allocator->getDeviceStats(0).allocated_bytes[kTotal].peak - before;
}

TEST(HeadLossCuda, ThePlanIsWhatIsAllocated) {
  LIMBECK_NEEDS_GPU();
  for (const int64_t run : {0, 25}) {
    const RunScope scope(run);
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto c = on_gpu(head_case(60, 1000, 64, 1.0, 0.3, dtype, dtype));
      const kernels::HeadLossInputs in{c.student_hidden, c.student_weight,    c.teacher_hidden, c.teacher_weight,
                                       std::nullopt,     c.divergence_weight, c.ce_weight};
      const HeadLossOptions options{.vocabulary = 1000};
      for (const auto& [hidden, weight] : {std::pair{false, false}, {true, false}, {false, true}, {true, true}}) {
        const int64_t results = 2 * 60 * 4 + (hidden ? static_cast<int64_t>(c.student_hidden.nbytes()) : 0) +
                                (weight ? static_cast<int64_t>(c.student_weight.nbytes()) : 0);
        const int64_t planned = kernels::cuda_head_scratch(kernels::head_shape(in, options, 60, hidden, weight));
        const int64_t peak = peak_of_forward(c, options, hidden, weight);
        const std::string what =
            fmt::format("{} in runs of {}, gradients {} {}", c10::toString(dtype), run, hidden, weight);
        EXPECT_GE(peak, planned + results) << what;
        EXPECT_LE(peak, planned + results + 16 * 1024) << what;  // values of tokens and alignment
      }
    }
  }
}

TEST(HeadLossCuda, DistantDistributionsStayFinite) {
  LIMBECK_NEEDS_GPU();
  for (const auto divergence : kAll) {
    auto c = head_case(40, 300, 16, /*size=*/60.0, /*noise=*/90.0, at::kFloat, at::kFloat);
    const HeadLossOptions options{.divergence = divergence, .mix = 0.3, .vocabulary = 300};
    const auto got = on_cpu(fused_head_loss(on_gpu(c), options)), want = reference_head_loss(c, options);
    EXPECT_LE(relative_distance(got.loss, want.loss), 1e-5) << divergence_text(divergence);
    EXPECT_LE(relative_distance(got.weight_gradient, want.weight_gradient), 1e-4) << divergence_text(divergence);
    EXPECT_GE(got.divergence.min().item<float>(), 0.0f) << divergence_text(divergence);
  }
}

TEST(HeadLossCuda, EvaluationHasTheBitsOfTraining) {
  LIMBECK_NEEDS_GPU();
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto c = on_gpu(mixed_case(dtype, at::kBFloat16));
    for (const auto divergence : kAll) {
      const auto options = every_option(divergence);
      expect_same_numbers(on_cpu(fused_head_loss(c, options, /*gradients=*/false)), on_cpu(fused_head_loss(c, options)),
                          false, divergence_text(divergence));
    }
  }
}

// All tokens run, so that nobody waits for their number: one that does not count must leave no trace all the same.
TEST(HeadLossCuda, ATokenThatDoesNotCountMayHoldAnything) {
  LIMBECK_NEEDS_GPU();
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto c = mixed_case(dtype, dtype);
    auto spoiled = c;
    spoiled.student_hidden = c.student_hidden.clone();
    spoiled.teacher_hidden = c.teacher_hidden.clone();
    for (auto& hidden : {spoiled.student_hidden, spoiled.teacher_hidden}) hidden.narrow(0, 8, 9).fill_(NAN);
    const auto options = every_option(Divergence::kReverseKl);
    expect_same_numbers(on_cpu(fused_head_loss(on_gpu(spoiled), options)), on_cpu(fused_head_loss(on_gpu(c), options)),
                        true, c10::toString(dtype));
  }
}

// A real GPU ends every later call of the process, so this one has a process of its own.
TEST(HeadLossCudaDeathTest, ALabelOutOfRangeIsRefused) {
  LIMBECK_NEEDS_GPU();
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto ends = [](int64_t label, double weight) {
    auto c = mixed_case(at::kFloat, at::kFloat);
    c.labels->select(0, 2).fill_(label);
    c.ce_weight.select(0, 2).fill_(weight);
    bool refused = false;
    try {
      fused_head_loss(on_gpu(c), every_option(Divergence::kForwardKl)).loss.cpu();
    } catch (const c10::Error&) {
      refused = true;
    }
    std::_Exit(refused ? 7 : 0);
  };
  EXPECT_EXIT(ends(500, 1.0), testing::ExitedWithCode(7), "");
  EXPECT_EXIT(ends(-1, 1.0), testing::ExitedWithCode(7), "");
  EXPECT_EXIT(ends(-100, 1.0), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(ends(-7, 0.0), testing::ExitedWithCode(0), "");  // counts for nothing
}

}  // namespace
}  // namespace limbeck::test
