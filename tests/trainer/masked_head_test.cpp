// The head of a masked language model (dense, GELU, LayerNorm, tied product, bias) under every divergence: values and
// every gradient against the formulas in float64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/trainer/message_of.h"
#include "tests/trainer/textbook_divergences.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/objective/language_terms.h"

namespace limbeck::objective {
namespace {

constexpr const char* kMasked = R"({"architectures": ["BertForMaskedLM"]})";
constexpr const char* kDistilled = R"({"architectures": ["DistilBertForMaskedLM"]})";
constexpr double kMaskedTemperature = 2.0;

using Leaves = std::map<std::string, at::Tensor>;

// Float64 copies of what the head is made of, that learn.
Leaves head_leaves(const models::BuiltModel& model) {
  Leaves leaves;
  for (const auto& entry : model.model->named_parameters()) {
    const std::string& name = entry.key();
    if (name.starts_with("head_") || name.starts_with("lm_head") || name == "embed_tokens.weight")
      leaves[name] = entry.value().detach().to(at::kDouble).set_requires_grad(true);
  }
  return leaves;
}

at::Tensor logits(const Leaves& p, const at::Tensor& last) {
  const at::Tensor dense = at::gelu(at::linear(last, p.at("head_dense.weight"), p.at("head_dense.bias")));
  const at::Tensor x = at::layer_norm(dense, {dense.size(-1)}, p.at("head_norm.weight"), p.at("head_norm.bias"), 1e-12);
  return at::linear(x, p.at("embed_tokens.weight"), p.at("lm_head.bias"));
}

double distance(const at::Tensor& got, const at::Tensor& wanted) {
  return ((got.to(at::kDouble) - wanted).norm() / wanted.norm().clamp_min(1e-12)).item<double>();
}

class MaskedHead : public testing::TestWithParam<std::tuple<std::string, std::string>> {};

TEST_P(MaskedHead, ValuesAndGradientsAreThoseOfFloat64) {
  const auto& [family, name] = GetParam();
  const char* changes = family == "bert" ? kMasked : kDistilled;
  const auto teacher = test::weighted_model(family, changes, 1), student = test::weighted_model(family, changes, 2);
  const Distillation pair =
      test::distillation_of("[teacher]\nmodel = " + teacher.string() + "\n[student]\nmodel = " + student.string() +
                            "\n[data]\nmasking = token\n");
  const auto random = [](int64_t rows, uint64_t seed) {
    return at::randn({rows, 32}, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
  };
  const at::Tensor states = random(21, 3).requires_grad_(), seen = random(21, 4);
  const at::Tensor labels = at::arange(21).remainder(97);
  const Divergence divergence = test::divergence_named(name, "[objective]\ntop_k = 8\n");
  HeadRequest request{.student = head_side(pair.student(), states.unsqueeze(0), 97, "student")};
  request.teacher = head_side(*pair.teacher(), seen.unsqueeze(0), 97, "teacher");
  request.divergence = &divergence;
  request.labels_n = labels;
  request.divergence_weight_n = at::full({21}, 0.7 / 21), request.ce_weight_n = at::full({21}, 0.3 / 21);
  request.temperature = kMaskedTemperature;
  const kernels::HeadLoss got = head_terms(request);
  got.loss.backward();

  const Leaves ours = head_leaves(pair.student()), theirs = head_leaves(*pair.teacher());
  const at::Tensor wide = states.detach().to(at::kDouble).set_requires_grad(true);
  const at::Tensor zs = logits(ours, wide), zt = logits(theirs, seen.to(at::kDouble)).detach();
  const double t = divergence.tempered ? kMaskedTemperature : 1.0;
  const at::Tensor kd = test::textbook_divergence(name, zs / t, zt / t) * (t * t);
  const at::Tensor wanted = 0.7 * kd.mean() + 0.3 * at::cross_entropy_loss(zs, labels);
  wanted.backward();
  EXPECT_NEAR(got.loss.item<double>(), wanted.item<double>(), 2e-6 * std::abs(wanted.item<double>()));
  EXPECT_LE(distance(states.grad(), wide.grad()), 1e-5) << "states";
  const auto parameters = pair.student().model->named_parameters();
  for (const auto& [path, leaf] : ours) EXPECT_LE(distance(parameters[path].grad(), leaf.grad()), 1e-5) << path;
}

INSTANTIATE_TEST_SUITE_P(All, MaskedHead,
                         testing::Combine(testing::Values("bert", "distilbert"),
                                          testing::Values("forward_kl", "reverse_kl", "jsd", "skew_forward_kl",
                                                          "skew_reverse_kl", "total_variation", "logit_mse", "uld",
                                                          "topk_union")),
                         [](const auto& which) { return std::get<0>(which.param) + "_" + std::get<1>(which.param); });

// DSKD and the logit projector read states through the student's head, which learns nothing from them.
TEST(MaskedHead, ReadsOthersStatesWithoutLearning) {
  const auto student = test::weighted_model("bert", kMasked, 2);
  const Distillation alone = test::distillation_of(
      "[student]\nmodel = " + student.string() + "\n[data]\nmasking = token\n[objective]\nalpha = 0\nce_weight = 1\n");
  const at::Tensor states = at::randn({1, 5, 32}).requires_grad_();
  const HeadSide learning = head_side(alone.student(), states, 97, "", true);
  const HeadSide frozen = head_side(alone.student(), states, 97, "", false);
  EXPECT_TRUE(at::equal(learning.hidden_nd, frozen.hidden_nd));
  EXPECT_FALSE(frozen.weight_vd.requires_grad());
  frozen.hidden_nd.sum().backward();
  EXPECT_GT(states.grad().abs().sum().item<double>(), 0.0);
  for (const auto& entry : alone.student().model->named_parameters())
    EXPECT_FALSE(entry.value().grad().defined()) << entry.key();
}

TEST(MaskedHead, WhatIsHiddenAndWhoFillsInMustFit) {
  const auto masked = test::weighted_model("bert", kMasked, 2).string();
  const auto llama = test::weighted_model("llama", "{}", 1).string(),
             bare = test::weighted_model("bert", R"({"architectures": ["BertModel"]})", 1).string();
  const auto said = [](const std::string& ini) {
    return test::message_of([&] { test::distillation_of(ini, Materialize::kMeta); });
  };
  const std::string alone = "\n[objective]\nalpha = 0\n", hides = "\n[data]\nmasking = whole_word\n";
  EXPECT_NE(said("[student]\nmodel = " + masked + alone).find("set data.masking = whole_word"), std::string::npos);
  EXPECT_NE(said("[student]\nmodel = " + llama + hides + alone).find("predicts the next token"), std::string::npos);
  EXPECT_NE(said("[student]\nmodel = " + bare + hides + alone).find("an encoder without such a head"),
            std::string::npos);
  EXPECT_NE(said("[teacher]\nmodel = " + llama + "\n[student]\nmodel = " + masked + hides).find("wanted two masked"),
            std::string::npos);
}

}  // namespace
}  // namespace limbeck::objective
