// Every divergence through row chunks of float32 logits: values and gradients against the textbook formula in float64,
// for all storage dtypes and for students near the teacher and far from it.
#include "trainer/objective/head/divergence.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <string>
#include <utility>

#include "modules/errors.h"
#include "tests/trainer/textbook_divergences.h"
#include "trainer/objective/head/head_terms.h"

namespace limbeck::objective {
namespace {

constexpr int64_t kTokens = 13, kWidth = 24, kVocabulary = 101;
constexpr double kTemperature = 2.0;
constexpr int64_t kTopK = 8;

struct Heads {
  at::Tensor student_hidden, student_weight, teacher_hidden, teacher_weight, labels, divergence_weight, ce_weight;
};

Heads random_heads(at::ScalarType dtype, double noise) {
  at::manual_seed(7);
  const auto options = at::TensorOptions().dtype(at::kFloat);
  Heads h;
  const at::Tensor hidden = at::randn({kTokens, kWidth}, options),
                   weight = at::randn({kVocabulary, kWidth}, options) * 0.1;  // logits of size 0.5
  h.teacher_hidden = hidden.to(dtype);
  h.teacher_weight = weight.clone().to(dtype);
  h.student_hidden = (hidden + noise * at::randn_like(hidden)).to(dtype).requires_grad_();
  h.student_weight = weight.clone().to(dtype).requires_grad_();
  h.labels = at::randint(0, kVocabulary, {kTokens}, at::kLong);
  h.divergence_weight = at::rand({kTokens}, options);
  h.divergence_weight[4] = 0;
  h.ce_weight = at::zeros({kTokens}, options);
  return h;
}

double relative_error(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

Divergence divergence_for(const std::string& name) {
  return test::divergence_named(name, "[objective]\ntop_k = " + std::to_string(kTopK) + "\n");
}

HeadRequest request_of(const Heads& h, const Divergence* divergence) {
  HeadRequest request;
  request.student = {.hidden_nd = h.student_hidden, .weight_vd = h.student_weight, .place = "student"};
  request.teacher = HeadSide{.hidden_nd = h.teacher_hidden, .weight_vd = h.teacher_weight, .place = "teacher"};
  request.divergence = divergence;
  request.divergence_weight_n = h.divergence_weight;
  request.ce_weight_n = h.ce_weight;
  request.temperature = kTemperature;
  return request;
}

struct DivergenceCase {
  std::string name;
  at::ScalarType dtype;
  double noise;
};

class EveryDivergence : public ::testing::TestWithParam<DivergenceCase> {};

struct Gradients {
  double loss;
  at::Tensor hidden, weight;
};

// The textbook formula and its gradients in float64, from logits in float64 or rounded by a float32 GEMM as ours are.
Gradients reference(const std::string& name, const Heads& h, bool tempered, bool float32_logits) {
  const at::Tensor hidden = h.student_hidden.detach().to(at::kDouble),
                   weight = h.student_weight.detach().to(at::kDouble);
  const auto logits = [&](const at::Tensor& x, const at::Tensor& w) {
    const at::ScalarType type = float32_logits ? at::kFloat : at::kDouble;
    return at::mm(x.detach().to(type), w.detach().to(type).t()).to(at::kDouble);
  };
  const at::Tensor zs = logits(h.student_hidden, h.student_weight).requires_grad_();
  const at::Tensor zt = logits(h.teacher_hidden, h.teacher_weight);
  const double t = tempered ? kTemperature : 1.0;
  const at::Tensor rows = test::textbook_divergence(name, zs / t, zt / t, kTopK) * (t * t);
  const at::Tensor loss = (rows * h.divergence_weight.to(at::kDouble)).sum();
  loss.backward();
  return {loss.item<double>(), at::mm(zs.grad(), weight), at::mm(zs.grad().t(), hidden)};
}

TEST_P(EveryDivergence, MatchesFloat64InValueAndGradient) {
  const auto& [name, dtype, noise] = GetParam();
  const Heads h = random_heads(dtype, noise);
  const Divergence divergence = divergence_for(name);
  const Gradients wanted = reference(name, h, divergence.tempered, false);
  const Gradients rounded = reference(name, h, divergence.tempered, true);
  // Below 1e-5, unless the rounding of float32 logits by the GEMM is itself more of their differences (it is for the
  // few ids of topk_union between the nearest distributions): then the formulas add next to nothing.
  const auto float32_bar = [](const at::Tensor& from_rounded, const at::Tensor& exact) {
    return std::max(1e-5, 1.1 * relative_error(from_rounded, exact));
  };
  const double hidden_bar = dtype == at::kFloat ? float32_bar(rounded.hidden, wanted.hidden) : 1e-2;
  const double weight_bar = dtype == at::kFloat ? float32_bar(rounded.weight, wanted.weight) : 1e-2;
  EXPECT_LT(std::max(hidden_bar, weight_bar), dtype == at::kFloat ? 3e-5 : 2e-2);
  for (auto* body : {&chunked_head_terms, &head_terms}) {
    HeadRequest request = request_of(h, &divergence);
    request.gradient_scale = dtype == at::kHalf ? 1024 : 1;  // float16 has a loss scale, or loses small gradients
    const kernels::HeadLoss ours = (*body)(request);
    h.student_hidden.mutable_grad().reset();
    h.student_weight.mutable_grad().reset();
    (ours.loss * request.gradient_scale).backward();
    EXPECT_EQ(ours.loss.scalar_type(), at::kFloat);
    EXPECT_EQ(h.student_hidden.grad().scalar_type(), dtype);
    EXPECT_EQ(ours.divergence_n[4].item<double>(), 0.0);
    // A token's divergence is a difference of float32 probabilities: some 1e-7 of rounding each.
    EXPECT_NEAR(ours.loss.item<double>(), wanted.loss, 1e-7 * kTokens * kTemperature + 2e-5 * wanted.loss);
    EXPECT_LT(relative_error(h.student_hidden.grad(), wanted.hidden * request.gradient_scale), hidden_bar);
    EXPECT_LT(relative_error(h.student_weight.grad(), wanted.weight * request.gradient_scale), weight_bar);
  }
}

std::vector<DivergenceCase> every_case() {
  std::vector<DivergenceCase> cases;
  for (const char* name : {"forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation",
                           "uld", "logit_mse", "topk_union"}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const double noise : {0.02, 0.1, 0.5}) cases.push_back({name, dtype, noise});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, EveryDivergence, ::testing::ValuesIn(every_case()), [](const auto& instance) {
  const char* dtype = instance.param.dtype == at::kFloat  ? "float32"
                      : instance.param.dtype == at::kHalf ? "float16"
                                                          : "bfloat16";
  return instance.param.name + "_" + dtype + "_noise" + std::to_string(static_cast<int>(100 * instance.param.noise));
});

TEST(Divergence, ChunksAndTilesDoNotChangeTheResult) {
  // More tokens than a chunk has rows and more ids than a tile: 600 x 5000 in bfloat16.
  at::manual_seed(3);
  Heads h;
  h.student_hidden = at::randn({600, 8}).to(at::kBFloat16).requires_grad_();
  h.student_weight = at::randn({5000, 8}).to(at::kBFloat16).requires_grad_();
  h.teacher_hidden = at::randn({600, 12}).to(at::kHalf);
  h.teacher_weight = at::randn({5003, 12}).to(at::kHalf);
  h.divergence_weight = at::rand({600});
  h.divergence_weight.narrow(0, 10, 3).zero_();
  h.ce_weight = at::rand({600});
  h.labels = at::randint(0, 5000, {600}, at::kLong);
  const Divergence divergence = divergence_for("forward_kl");
  HeadRequest request = request_of(h, &divergence);
  request.labels_n = h.labels;
  request.label_smoothing = 0.1;
  request.student.softcap = 3.0;
  request.clamp = 1.2;
  request.teacher->vocabulary = request.student.vocabulary = 4998;
  const kernels::HeadLoss ours = head_terms(request);
  ours.loss.backward();
  const at::Tensor hidden = h.student_hidden.detach().to(at::kDouble).requires_grad_();
  const at::Tensor weight = h.student_weight.detach().to(at::kDouble).requires_grad_();
  const at::Tensor zs = (at::mm(hidden, weight.t()) / 3.0).tanh().narrow(1, 0, 4998) * 3.0;
  const at::Tensor zt =
      at::mm(h.teacher_hidden.to(at::kDouble), h.teacher_weight.to(at::kDouble).t()).narrow(1, 0, 4998);
  const auto soft = [](const at::Tensor& z) { return (z / kTemperature).clamp(-1.2, 1.2); };
  const at::Tensor kd = test::textbook_divergence("forward_kl", soft(zs), soft(zt)) * (kTemperature * kTemperature);
  const at::Tensor clean = h.labels.clamp_max(4997), ls = zs.log_softmax(-1);
  const at::Tensor ce = -(0.9 * ls.gather(1, clean.unsqueeze(1)).squeeze(1) + 0.1 * ls.mean(-1));
  ASSERT_LT(h.labels.max().item<int64_t>(), 4998);
  const at::Tensor wanted = (kd * h.divergence_weight.to(at::kDouble)).sum() + (ce * h.ce_weight.to(at::kDouble)).sum();
  wanted.backward();
  EXPECT_NEAR(ours.loss.item<double>(), wanted.item<double>(), 1e-5 * wanted.item<double>());
  EXPECT_LT(relative_error(h.student_hidden.grad(), hidden.grad()), 1e-2);
  EXPECT_LT(relative_error(h.student_weight.grad(), weight.grad()), 1e-2);
  EXPECT_EQ(h.student_weight.grad().narrow(0, 4998, 2).abs().sum().item<double>(), 0.0);
}

TEST(Divergence, TeacherLearnsOnlyWhenAsked) {
  Heads h = random_heads(at::kFloat, 0.5);
  h.teacher_hidden.requires_grad_();
  const Divergence divergence = divergence_for("forward_kl");
  HeadRequest request = request_of(h, &divergence);
  request.teacher_learns = true;
  head_terms(request).loss.backward();
  const at::Tensor hidden = h.teacher_hidden.detach().to(at::kDouble).requires_grad_();
  const at::Tensor zt = at::mm(hidden, h.teacher_weight.to(at::kDouble).t()) / kTemperature;
  const at::Tensor zs =
      at::mm(h.student_hidden.detach().to(at::kDouble), h.student_weight.detach().to(at::kDouble).t()) / kTemperature;
  (test::textbook_divergence("forward_kl", zs, zt) * h.divergence_weight.to(at::kDouble) * 4.0).sum().backward();
  EXPECT_LT(relative_error(h.teacher_hidden.grad(), hidden.grad()), 1e-5);
  h.teacher_hidden.mutable_grad().reset();
  request.teacher_learns = false;
  head_terms(request).loss.backward();
  EXPECT_FALSE(h.teacher_hidden.grad().defined());
}

TEST(Divergence, UnionCountsEachIdOnce) {
  // The teacher's two likeliest ids are 1 and 2, the student's 0 and 1: the union is {0, 1, 2}, with id 1 in it once.
  const double student[] = {3, 2, 1, 0, -1}, teacher[] = {0.5, 3, 2, 0, -2};
  const auto share = [](const double* z, int i) {
    return std::exp(z[i]) / (std::exp(z[0]) + std::exp(z[1]) + std::exp(z[2]));
  };
  double wanted = 0;
  for (int i = 0; i < 3; ++i) wanted += share(teacher, i) * std::log(share(teacher, i) / share(student, i));
  const at::Tensor zs = at::tensor({3., 2., 1., 0., -1.}, at::kDouble).unsqueeze(0);
  const at::Tensor zt = at::tensor({0.5, 3., 2., 0., -2.}, at::kDouble).unsqueeze(0);
  EXPECT_NEAR(rows::union_kl(zs, zt, 2).item<double>(), wanted, 1e-14);
  const at::Tensor leaf = zs.clone().requires_grad_();
  rows::union_kl(leaf, zt, 2).sum().backward();
  for (int i = 0; i < 3; ++i)
    EXPECT_NEAR(leaf.grad()[0][i].item<double>(), share(student, i) - share(teacher, i), 1e-14);
  EXPECT_EQ(leaf.grad().narrow(1, 3, 2).abs().sum().item<double>(), 0.0);
}

TEST(Divergence, UnionOfWholeVocabularyIsTheFullKl) {
  at::manual_seed(5);
  const at::Tensor zs = at::randn({6, 33}, at::kDouble), zt = at::randn({6, 33}, at::kDouble);
  for (const int64_t k : {int64_t{33}, int64_t{50}}) {
    EXPECT_LT((rows::union_kl(zs, zt, k) - rows::forward_kl(zs, zt)).abs().max().item<double>(), 1e-13);
  }
}

TEST(Divergence, IsNeverNegativeAndZeroForEqualHeads) {
  for (const char* name : {"forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "topk_union", "uld",
                           "total_variation"}) {
    const Divergence divergence = divergence_for(name);
    at::manual_seed(11);
    for (const double noise : {0.0, 1e-7, 1e-5}) {
      const at::Tensor hidden = at::randn({200, kWidth}), weight = at::randn({kVocabulary, kWidth}) * 0.3;
      HeadRequest request;
      request.student = {.hidden_nd = hidden + noise * at::randn_like(hidden), .weight_vd = weight, .place = "s"};
      request.teacher = HeadSide{.hidden_nd = hidden, .weight_vd = weight, .place = "t"};
      request.divergence = &divergence;
      request.divergence_weight_n = at::ones({200});
      request.ce_weight_n = at::zeros({200});
      for (auto* body : {&chunked_head_terms, &head_terms}) {
        const at::Tensor values = (*body)(request).divergence_n;
        EXPECT_GE(values.min().item<double>(), 0.0) << name << " " << noise;
        if (noise == 0.0) {
          EXPECT_EQ(values.max().item<double>(), 0.0) << name;
        }
      }
    }
  }
}

TEST(Divergence, SkewWithoutAShareIsThePlainOne) {
  at::manual_seed(5);
  const at::Tensor zt = at::randn({6, 33}) * 60;
  for (const auto& [skew, plain] :
       {std::pair("skew_forward_kl", "forward_kl"), std::pair("skew_reverse_kl", "reverse_kl")}) {
    const auto gradient = [&, zs = at::randn({6, 33}) * 60](const Divergence& divergence) {
      const at::Tensor student = zs.detach().clone().requires_grad_();
      divergence.rows(student, zt).sum().backward();
      return student.grad();
    };
    const at::Tensor got = gradient(test::divergence_named(skew, "[objective]\nskew = 0\n"));
    EXPECT_TRUE(at::isfinite(got).all().item<bool>()) << skew;
    EXPECT_TRUE(at::equal(got, gradient(divergence_for(plain)))) << skew;
    try {
      test::divergence_named(skew, "[objective]\nskew = 1e-5\n");
      FAIL() << skew;
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find("set it 0, or from 0.0001 to below 1"), std::string::npos)
          << error.what();
    }
  }
}

TEST(Divergence, PaddedTeacherHeadHasNoMass) {
  Heads h = random_heads(at::kFloat, 0.0);
  h.teacher_weight = at::cat({h.student_weight.detach(), at::randn({7, kWidth}) * 9});
  const Divergence divergence = divergence_for("forward_kl");
  HeadRequest request = request_of(h, &divergence);
  request.student.vocabulary = request.teacher->vocabulary = kVocabulary;
  const kernels::HeadLoss loss = head_terms(request);
  EXPECT_EQ(loss.loss.item<double>(), 0.0);
  loss.loss.backward();
  EXPECT_LT(h.student_hidden.grad().abs().max().item<double>(), 1e-7);
}

TEST(Divergence, SortedDistanceFillsTheSmallerVocabulary) {
  const at::Tensor zs = at::tensor({0.5, 0.25, 0.25}, at::kDouble).log().unsqueeze(0);
  const at::Tensor zt = at::tensor({0.1, 0.6, 0.1, 0.2}, at::kDouble).log().unsqueeze(0);
  EXPECT_NEAR(rows::sorted_distance(zs, zt).item<double>(), 0.1 + 0.05 + 0.15 + 0.1, 1e-14);
}

TEST(Divergence, ComparesHeadsAsEvaluationReportsThem) {
  const at::Tensor weight = at::eye(6);
  const HeadSide student{
      .hidden_nd = at::tensor({6.f, 5.f, 4.f, 3.f, 2.f, 1.f, 6.f, 5.f, 4.f, 3.f, 2.f, 1.f}).view({2, 6}),
      .weight_vd = weight,
      .place = "s"};
  const HeadSide teacher{
      .hidden_nd = at::tensor({6.f, 5.f, 4.f, 3.f, 2.f, 1.f, 1.f, 2.f, 3.f, 4.f, 5.f, 6.f}).view({2, 6}),
      .weight_vd = weight,
      .place = "t"};
  const HeadComparison both = compare_heads(student, teacher, at::ones({2}, at::kBool));
  EXPECT_EQ(both.top1_agreements, 1);
  EXPECT_DOUBLE_EQ(both.top5_overlap, 1.0 + 4.0 / 5.0);
  EXPECT_NEAR(both.kl, test::textbook_divergence("forward_kl", student.hidden_nd, teacher.hidden_nd)[1].item<double>(),
              1e-5);
  const at::Tensor right = right_predictions(teacher, at::tensor({0, 0}, at::kLong), at::ones({2}, at::kBool));
  EXPECT_TRUE(right[0].item<bool>());
  EXPECT_FALSE(right[1].item<bool>());
}

}  // namespace
}  // namespace limbeck::objective
