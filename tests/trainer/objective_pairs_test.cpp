// Pairs that are not one tokenizer and one kind of model: two tokenizers (uld, dskd, logit projector), mixtures of
// experts, encoders, classifiers; and what is refused.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "kernels/attention/attention.h"
#include "modules/precision/recorder.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/objective/attention_terms.h"
#include "trainer/objective/hidden_terms.h"
#include "trainer/objective/layer_map.h"
#include "trainer/objective/routing_terms.h"

namespace limbeck::objective {
namespace {

using test::distillation_of;
using test::message_of;
using test::on_meta;
using test::random_batch;
using test::settings_of;
using test::weighted_model;

std::string recipe_of(const std::filesystem::path& teacher, const std::filesystem::path& student,
                      const std::string& more = "", const std::string& teacher_dtype = "float32",
                      const std::string& student_dtype = "float32") {
  return "seed = 5\n[teacher]\nmodel = " + teacher.string() + "\ndtype = " + teacher_dtype +
         "\n[student]\nmodel = " + student.string() + "\ndtype = " + student_dtype + "\n" + more;
}

const std::filesystem::path& student() {
  static const auto folder = weighted_model("llama", "{}", 2);
  return folder;
}

const std::filesystem::path& other_tokenizer() {
  static const auto folder =
      weighted_model("llama", R"({"vocab_size": 311, "hidden_size": 40, "num_hidden_layers": 3})", 1);
  return folder;
}

// The teacher's stream is longer; every third student token has no teacher token.
data::Batch two_streams(bool packed) {
  data::Batch batch = random_batch({.rows = 3, .length = 10, .vocabulary = 97, .packed = packed}, 3);
  batch.teacher = test::random_stream({.rows = 3, .length = 14, .vocabulary = 311, .packed = packed}, 4);
  batch.teacher_position = (at::arange(10, at::kLong) + 2).unsqueeze(0).expand({3, 10}).contiguous();
  batch.teacher_position.select(1, 3).fill_(-1);
  return batch;
}

Terms expect_sound(const std::string& recipe, const data::Batch& batch, const std::vector<std::string>& wanted) {
  const Distillation objective = distillation_of(recipe);
  const Progress progress{.step = 9, .total_steps = 10};
  const Terms training = objective.forward(batch, progress);
  training.loss.backward();
  for (const auto& p : objective.trained_parameters()) {
    EXPECT_TRUE(p.tensor.grad().defined()) << p.name;
    if (!p.tensor.grad().defined()) continue;
    EXPECT_TRUE(p.tensor.grad().isfinite().all().item<bool>()) << p.name;
    if (p.decays && p.group != "student") {
      EXPECT_GT(p.tensor.grad().abs().sum().item<double>(), 0.0) << p.name;
    }
  }
  const at::NoGradGuard no_gradient;
  Measures measures;
  const Terms evaluation = objective.forward(batch, progress, &measures);
  EXPECT_TRUE(at::equal(training.loss.detach(), evaluation.loss));
  for (const std::string& name : wanted) {
    const auto found =
        std::find_if(training.terms.begin(), training.terms.end(), [&](const Term& t) { return t.name == name; });
    EXPECT_NE(found, training.terms.end()) << name;
    if (found != training.terms.end()) {
      EXPECT_GT(found->value.item<double>(), 0.0) << name;
    }
  }
  const at::AutoGradMode recording(true);
  const Distillation meta = distillation_of(recipe, Materialize::kMeta);
  precision::OperatorRecorder recorder;
  meta.forward(on_meta(batch), {}).loss.backward();
  for (const std::string& line : recorder.violations()) ADD_FAILURE() << line;
  return training;
}

TEST(ObjectivePairs, TwoTokenizersByUldLogitProjectorAndDskd) {
  for (const bool packed : {false, true}) {
    const data::Batch batch = two_streams(packed);
    for (const auto& [teacher, own] : {std::pair{"float16", "float32"}, {"float32", "bfloat16"}}) {
      const auto recipe = [&](const std::string& more) {
        return recipe_of(other_tokenizer(), student(), more, teacher, own);
      };
      expect_sound(recipe("[objective]\ndivergence = uld\n"), batch, {"kd", "ce"});
      expect_sound(recipe("[projector]\nkind = logit\n"), batch, {"kd", "ce", "projector_ce"});
      expect_sound(recipe("[objective]\ndivergence = dskd\n"), batch, {"kd", "ce", "t2s_ce", "s2t_kd"});
      if (!packed)
        expect_sound(recipe("[projector]\nkind = logit\n[objective]\nalignment = interpolate\n"), batch, {"kd"});
    }
  }
}

TEST(ObjectivePairs, DskdOfOneTokenizerReachesBothProjectorsAndHonoursItsMask) {
  const auto teacher = weighted_model("llama", R"({"hidden_size": 40, "num_hidden_layers": 3})", 1);
  const data::Batch batch = random_batch({}, 3);
  const Distillation objective = distillation_of(recipe_of(teacher, student(), "[objective]\ndivergence = dskd\n"));
  const Terms terms = objective.forward(batch, {});
  terms.loss.backward();
  for (const auto& p : objective.trained_parameters()) {
    if (p.name.starts_with("projector.query")) continue;  // joins two tokenizers alone
    ASSERT_TRUE(p.tensor.grad().defined()) << p.name;
  }
  const Distillation masked =
      distillation_of(recipe_of(teacher, student(), "[objective]\ndivergence = dskd\ndskd_mask = right\n"));
  // A projector at its first values predicts next to nothing rightly.
  EXPECT_LT(masked.forward(batch, {}).terms[0].value.item<double>(), terms.terms[0].value.item<double>());
}

TEST(ObjectivePairs, TokensWithoutATeacherTokenAreLeftOutOfTheDivergence) {
  data::Batch batch = two_streams(false);
  const Distillation objective =
      distillation_of(recipe_of(other_tokenizer(), student(), "[objective]\ndivergence = uld\n"));
  const at::NoGradGuard no_gradient;
  const Terms some = objective.forward(batch, {});
  batch.teacher_position.fill_(-1);
  const Terms none = objective.forward(batch, {});
  EXPECT_GT(some.terms[0].value.item<double>(), 0.0);
  EXPECT_EQ(none.terms[0].value.item<double>(), 0.0);
  EXPECT_EQ(some.targets, none.targets);
}

TEST(ObjectivePairs, InterpolationHitsTheEndsAndTheMiddle) {
  data::Batch batch;
  batch.student.ids = at::zeros({1, 5}, at::kLong);
  batch.teacher = data::TokenStream{};
  batch.teacher->ids = at::zeros({1, 9}, at::kLong);
  batch.teacher->attention_mask = at::tensor({1, 1, 1, 1, 1, 1, 1, 0, 0}, at::kLong).unsqueeze(0);
  const TokenAlignment align(batch, true);
  const at::Tensor states = at::arange(9, at::kFloat).view({1, 9, 1});
  EXPECT_TRUE(at::allclose(align(states, "x").flatten(), at::tensor({0.f, 1.5f, 3.f, 4.5f, 6.f})));
}

TEST(ObjectivePairs, RoutersOfMixturesAreBalancedAndLearnt) {
  const auto teacher = weighted_model("qwen3_moe", R"({"hidden_size": 40, "num_hidden_layers": 3})", 1);
  const auto sparse = weighted_model("qwen3_moe", "{}", 2);
  const std::string more = "[objective]\nbalance_weight = 0.01\nexpert_mix_weight = 0.1\n";
  expect_sound(recipe_of(teacher, sparse, more, "bfloat16", "float16"), random_batch({}, 3),
               {"kd", "balance", "expert_mix.0", "expert_mix.1"});
  const Distillation objective = distillation_of(recipe_of(teacher, student(), more), Materialize::kMeta);
  int routers = 0;
  for (const auto& p : objective.trained_parameters()) routers += p.group == "router" ? 1 : 0;
  EXPECT_EQ(routers, 2 * 2);  // weight and bias, a layer each
  const at::Tensor even = at::zeros({6, 4}), tilted = at::tensor({9.f, 0.f, 0.f, 0.f}).expand({6, 4});
  EXPECT_NEAR(imbalance(even, at::full({6}, 0.1)).item<double>(), 0.0, 1e-6);
  const double p = std::exp(9.0) / (std::exp(9.0) + 3), q = 1 / (std::exp(9.0) + 3);
  EXPECT_NEAR(imbalance(tilted, at::full({6}, 0.1)).item<double>(),
              -(std::log(p) + 3 * std::log(q)) / 4 - std::log(4.0), 1e-4);
}

TEST(ObjectivePairs, EncodersLearnPooledStates) {
  const auto teacher = weighted_model("bert", R"({"architectures": ["BertModel"], "hidden_size": 48})", 1);
  const auto own = weighted_model("bert", R"({"architectures": ["BertModel"]})", 2);
  data::Batch batch = random_batch({}, 3);
  batch.student.labels.fill_(-100);
  expect_sound(recipe_of(teacher, own), batch, {"embedding"});
  expect_sound(
      recipe_of(teacher, own, "[objective]\nfeature_weight = 1\nattention_weight = 1\n", "float16", "bfloat16"), batch,
      {"embedding", "feature", "attention.0"});
}

TEST(ObjectivePairs, ClassifiersLearnClassesAndTheTeachersDistribution) {
  const auto teacher = weighted_model("distilbert", R"({"n_layers": 3, "num_labels": 3})", 1);
  const auto own = weighted_model("distilbert", R"({"num_labels": 3})", 2);
  data::Batch batch = random_batch({}, 3);
  batch.classes = at::tensor({2, -100, 0}, at::kLong);
  const std::string recipe = recipe_of(teacher, own, "[objective]\ntemperature = 2\n", "bfloat16", "float32");
  expect_sound(recipe, batch, {"kd", "ce"});
  Measures m;
  const at::NoGradGuard no_gradient;
  distillation_of(recipe).forward(batch, {}, &m);
  EXPECT_EQ(m.labelled, 2);
  EXPECT_EQ(m.compared, 3);
  EXPECT_LE(m.student_right, 2);
  int64_t gold = 0, predicted = 0, right = 0;
  ASSERT_EQ(m.classes.size(), 3u);
  for (const ClassCounts& one : m.classes) gold += one.gold, predicted += one.predicted, right += one.right;
  EXPECT_EQ(std::vector({m.classes[0].gold, m.classes[1].gold, m.classes[2].gold}), std::vector<int64_t>({1, 0, 1}));
  EXPECT_EQ(std::vector({gold, predicted, right}), std::vector<int64_t>({2, 2, m.student_right}));
  const auto two = weighted_model("distilbert", R"({"num_labels": 2})", 1);
  EXPECT_NE(
      message_of([&] { distillation_of(recipe_of(two, own)); }).find("it has 2 classes, wanted a classifier of 3"),
      std::string::npos);
}

TEST(ObjectivePairs, DifferentTokenizersAreRefusedUnlessTheObjectiveCrosses) {
  const std::string wrong = message_of([&] { distillation_of(recipe_of(other_tokenizer(), student())); });
  EXPECT_EQ(
      wrong,
      "2: the teacher's vocabulary has 311 ids, the student's 97, and objective.divergence = forward_kl (default "
      "of objective.divergence) compares them id by id: set objective.divergence = uld or dskd, or projector.kind "
      "= logit, and prepare data with both tokenizers");
  // A padded table is no other tokenizer, and its padding is masked.
  const auto padded = weighted_model("llama", R"({"vocab_size": 128})", 1);
  test::RecipePair pair(recipe_of(padded, student()));
  const auto ids = [](int64_t student, int64_t teacher) {
    data::Manifest manifest;
    manifest.vocabulary = student;
    manifest.teacher_vocabulary = teacher;
    return manifest;
  };
  const auto agreed = [](test::RecipePair& with, const data::Manifest& manifest, const std::string& origin) {
    return with.agreement.vocabulary({{manifest, origin}});
  };
  const Distillation objective(pair.options, pair.pair, agreed(pair, ids(95, 0), "data.train (my.ini:3)"));
  const data::Batch batch = random_batch({.vocabulary = 95}, 3);
  EXPECT_GT(objective.forward(batch, {}).loss.item<double>(), 0.0);
  EXPECT_EQ(message_of([&] { agreed(pair, ids(98, 0), "data.train (my.ini:3)"); }),
            "2: data.train (my.ini:3) has token ids up to 97, but " + student().string() +
                " has 97 rows for them: prepare the data again with the tokenizer of student.model");
  EXPECT_NE(message_of([&] { agreed(pair, ids(95, 300), "d"); }).find("was prepared with two tokenizers"),
            std::string::npos);
  test::RecipePair crossing(recipe_of(other_tokenizer(), student(), "[objective]\ndivergence = uld\n"));
  EXPECT_NE(message_of([&] { agreed(crossing, ids(95, 0), "d"); }).find("holds the ids of one tokenizer"),
            std::string::npos);
  const Vocabulary both = agreed(crossing, ids(97, 311), "d");
  EXPECT_EQ(both.student, 97);
  EXPECT_EQ(both.teacher, 311);
}

TEST(ObjectivePairs, TokenizerFilesDecideWhereSizesAgree) {
  const auto teacher = weighted_model("llama", "{}", 1), own = weighted_model("llama", "{}", 2);
  const auto write = [](const std::filesystem::path& folder, const std::string& vocabulary) {
    std::ofstream(folder / "tokenizer.json") << R"({"model": {"type": "BPE", "vocab": )" << vocabulary << "}}";
  };
  write(teacher, R"({"a": 0, "b": 1, "c": 2})");
  write(own, R"({"a": 0, "b": 1})");
  EXPECT_NO_THROW(distillation_of(recipe_of(teacher, own), Materialize::kMeta));
  write(own, R"({"a": 0, "x": 1})");
  EXPECT_NE(message_of([&] {
              distillation_of(recipe_of(teacher, own), Materialize::kMeta);
            }).find("id 1 is \"b\" in the teacher's tokenizer.json and \"x\" in the student's"),
            std::string::npos);
}

TEST(ObjectivePairs, WhatCannotWorkIsRefusedWithTheWayOut) {
  const auto fault = [&](const std::string& more) {
    return message_of([&] { distillation_of(recipe_of(student(), student(), more), Materialize::kMeta); });
  };
  EXPECT_NE(
      fault("[objective]\nlayer_weight = 1\nlayer_map = 1:9\n").find("1:9 is outside the models, wanted at most 2:2"),
      std::string::npos);
  EXPECT_NE(fault("[objective]\nlayer_weight = 1\nlayer_map = 1:2\n").find("pairs a state after the final norm"),
            std::string::npos);
  EXPECT_NE(fault("[objective]\nexpert_mix_weight = 1\n").find("the teacher has no experts"), std::string::npos);
  EXPECT_NE(fault("[objective]\nbalance_weight = 1\n").find("router to balance"), std::string::npos);
  EXPECT_NE(fault("[objective]\ndivergence = forward\n").find("objectives: forward is unknown"), std::string::npos);
  EXPECT_NE(fault("[precision]\nrule = projector.* float32\n").find("set projector.dtype = float32"),
            std::string::npos);
  EXPECT_NE(fault("[objective]\ncurriculum_layer_from = 0.9\n").find("exchange them"), std::string::npos);
  EXPECT_NE(message_of([&] {
              distillation_of("[student]\nmodel = " + student().string() + "\n");
            }).find("objective.alpha = 0.7 (default of objective.alpha) compares with a teacher"),
            std::string::npos);
  const Distillation alone = distillation_of("[student]\nmodel = " + student().string() + "\n[objective]\nalpha = 0\n");
  const Terms terms = alone.forward(random_batch({}, 3), {});
  ASSERT_EQ(terms.terms.size(), 1u);
  EXPECT_EQ(terms.terms[0].name, "ce");
  EXPECT_EQ(terms.terms[0].weight, 1.0);
}

TEST(ObjectivePairs, LayerMapIsTheFloorOfTheRatio) {
  using Pairs = std::vector<std::pair<int64_t, int64_t>>;
  EXPECT_EQ(layer_map(read_layer_map(settings_of("")), 4, 10), (Pairs{{1, 2}, {2, 5}, {3, 7}}));
  EXPECT_EQ(layer_map(read_layer_map(settings_of("[objective]\nlayer_map = 0:0 2:9 4:10\n")), 4, 10),
            (Pairs{{0, 0}, {2, 9}, {4, 10}}));
}

TEST(ObjectivePairs, ContrastIsDefinedForOneRowAndRightForTwo) {
  const at::Tensor s = at::tensor({1.0, 0.0, 0.0, 1.0}).view({2, 2}), t = at::tensor({2.0, 0.0, 0.0, 3.0}).view({2, 2});
  EXPECT_EQ(info_nce(s.narrow(0, 0, 1), t.narrow(0, 0, 1), 0.07).item<double>(), 0.0);
  EXPECT_NEAR(info_nce(s, t, 0.5)[0].item<double>(), std::log1p(std::exp(-2.0)), 1e-6);
}

TEST(ObjectivePairs, AttentionScoresGiveTheKernelsAttention) {
  const auto folder = weighted_model("gemma2", "{}", 1);  // windows, softcap and grouped queries
  models::ModelRequest request;
  request.folder = folder;
  const models::BuiltModel model = models::load_model(request);
  const data::TokenStream stream = test::random_stream({.packed = true}, 3);
  const models::Architecture& a = model.model->architecture();
  const at::Tensor q = at::randn({3, 10, a.heads, a.head_dim}), k = at::randn({3, 10, a.key_value_heads, a.head_dim});
  const at::Tensor v = at::eye(10).view({1, 10, 1, 10}).expand({3, 10, a.key_value_heads, 10}).contiguous();
  const at::Tensor documents = stream.document_ids->to(at::kInt);
  for (int64_t layer = 0; layer < a.layers; ++layer) {
    const int64_t window = a.window.empty() ? 0 : a.window[static_cast<size_t>(layer)];
    const at::Tensor ours = attention_scores({q, k}, a, at::kFloat, "x")
                                .masked_fill(visible_keys(stream, a, layer).logical_not(), -1e30)
                                .softmax(-1);
    const at::Tensor theirs =
        kernels::attention(q, k, v, documents, documents, {a.attention_scale, true, window, a.attention_softcap})
            .transpose(1, 2);  // values that are the identity give the probabilities back
    const at::Tensor valid = stream.document_ids->ne(0).view({3, 1, 10, 1});
    EXPECT_LT(((ours - theirs) * valid).abs().max().item<double>(), 1e-5);
  }
}

}  // namespace
}  // namespace limbeck::objective
