// The one forward of a distillation: training equals evaluation bit for bit in every pair of dtypes, batches may be
// split at will, and `check` runs it on meta without a violation.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "modules/precision/casts.h"
#include "modules/precision/recorder.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/objective/attention_terms.h"
#include "trainer/objective/hidden_terms.h"
#include "trainer/objective/layer_map.h"
#include "trainer/objective/routing_terms.h"

namespace limbeck::objective {
namespace {

using test::BatchShape;
using test::distillation_of;
using test::message_of;
using test::on_meta;
using test::random_batch;
using test::settings_of;
using test::weighted_model;

const std::filesystem::path& teacher_folder() {
  static const auto folder = weighted_model(
      "llama", R"({"hidden_size": 48, "num_hidden_layers": 4, "head_dim": 12, "num_attention_heads": 6})", 1);
  return folder;
}

const std::filesystem::path& student_folder() {
  static const auto folder = weighted_model("llama", "{}", 2);
  return folder;
}

std::string pair_recipe(const std::string& more = "", const std::string& teacher_dtype = "float32",
                        const std::string& student_dtype = "float32") {
  return "seed = 5\n[teacher]\nmodel = " + teacher_folder().string() + "\ndtype = " + teacher_dtype +
         "\n[student]\nmodel = " + student_folder().string() + "\ndtype = " + student_dtype + "\n" + more;
}

const Term* term(const Terms& terms, const std::string& name) {
  for (const Term& t : terms.terms) {
    if (t.name == name) return &t;
  }
  ADD_FAILURE() << "no term " << name;
  return nullptr;
}

bool has_term(const Terms& terms, const std::string& name) {
  return std::any_of(terms.terms.begin(), terms.terms.end(), [&](const Term& t) { return t.name == name; });
}

void clear_gradients(const Distillation& objective) {
  for (const TrainedParameter& p : objective.trained_parameters()) p.tensor.mutable_grad().reset();
}

// Training and evaluation agree in every bit of loss and terms, and every gradient is finite.
Terms expect_training_equals_evaluation(const Distillation& objective, const data::Batch& batch,
                                        const Progress& progress) {
  const Terms training = objective.forward(batch, progress);
  Terms evaluation;
  {
    const at::NoGradGuard no_gradient;
    evaluation = objective.forward(batch, progress);
  }
  EXPECT_TRUE(training.loss.requires_grad());
  EXPECT_FALSE(evaluation.loss.requires_grad());
  EXPECT_TRUE(at::equal(training.loss.detach(), evaluation.loss)) << training.loss << evaluation.loss;
  EXPECT_EQ(training.terms.size(), evaluation.terms.size());
  double sum = 0;
  for (size_t i = 0; i < training.terms.size(); ++i) {
    EXPECT_TRUE(at::equal(training.terms[i].value, evaluation.terms[i].value)) << training.terms[i].name;
    EXPECT_EQ(training.terms[i].value.dim(), 0);
    sum += training.terms[i].weight * training.terms[i].value.item<double>();
  }
  EXPECT_NEAR(training.loss.item<double>(), sum, 1e-5 * std::max(1.0, std::abs(sum)));
  EXPECT_TRUE(std::isfinite(sum));
  clear_gradients(objective);
  training.loss.backward();
  for (const TrainedParameter& p : objective.trained_parameters()) {
    if (p.tensor.grad().defined()) {
      EXPECT_TRUE(p.tensor.grad().isfinite().all().item<bool>()) << p.name;
    }
  }
  return training;
}

struct MetaRun {
  std::vector<std::string> violations;
  std::set<std::string> casts;
};

MetaRun run_on_meta(const std::string& recipe, const data::Batch& batch) {
  MetaRun run;
  const Distillation objective = distillation_of(recipe, Materialize::kMeta);
  precision::CastLog casts;
  precision::OperatorRecorder recorder;
  objective.forward(on_meta(batch), {}).loss.backward();
  const at::NoGradGuard no_gradient;
  objective.forward(on_meta(batch), {});
  run.violations = recorder.violations();
  for (const auto& [key, cost] : casts.casts()) run.casts.insert(key.place);
  for (const auto& module : objective.contract_modules()) {
    for (const std::string& line : module->violations()) run.violations.push_back(line);
  }
  return run;
}

void expect_clean_on_meta(const std::string& recipe, const data::Batch& batch) {
  for (const std::string& line : run_on_meta(recipe, batch).violations) ADD_FAILURE() << line;
}

struct PairCase {
  std::string teacher, student, projector;
  bool packed;
};

class EveryPair : public ::testing::TestWithParam<PairCase> {};

TEST_P(EveryPair, TrainingLossIsEvaluationLossBitForBit) {
  const PairCase& c = GetParam();
  std::string more;
  if (c.projector == "logit") more = "[projector]\nkind = logit\n";
  if (c.projector == "hidden")
    more = "[objective]\nfeature_weight = 0.2\nlayer_weight = 0.1\nmixer_weight = 0.1\nhidden_projector = mlp\n";
  const std::string recipe = pair_recipe(more, c.teacher, c.student);
  const data::Batch batch = random_batch({.packed = c.packed}, 3);
  const Distillation objective = distillation_of(recipe);
  const Terms terms = expect_training_equals_evaluation(objective, batch, {.step = 3, .total_steps = 10});
  EXPECT_EQ(terms.loss.scalar_type(), at::kFloat);
  EXPECT_GT(term(terms, "kd")->value.item<double>(), 0.0);
  EXPECT_GT(term(terms, "ce")->value.item<double>(), 0.0);
  EXPECT_EQ(has_term(terms, "projector_ce"), c.projector == "logit");
  EXPECT_EQ(has_term(terms, "feature"), c.projector == "hidden");
  for (const char* name : {"hidden.1", "mixer.0", "mixer.1"}) EXPECT_EQ(has_term(terms, name), c.projector == "hidden");
  for (const TrainedParameter& p : objective.trained_parameters()) {
    EXPECT_TRUE(p.tensor.grad().defined()) << p.name;
    EXPECT_EQ(p.tensor.grad().scalar_type(), p.tensor.scalar_type()) << p.name;
    EXPECT_FALSE(p.name.starts_with("teacher.")) << p.name;
  }
  for (const at::Tensor& p : objective.teacher()->model->parameters()) EXPECT_FALSE(p.requires_grad());
  expect_clean_on_meta(recipe, batch);
}

std::vector<PairCase> every_pair() {
  std::vector<PairCase> cases;
  for (const char* teacher : {"float32", "bfloat16", "float16"}) {
    for (const char* student : {"float32", "bfloat16", "float16"}) {
      for (const char* projector : {"none", "logit", "hidden"}) {
        for (const bool packed : {false, true}) cases.push_back({teacher, student, projector, packed});
      }
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, EveryPair, ::testing::ValuesIn(every_pair()), [](const auto& instance) {
  const PairCase& c = instance.param;
  return c.teacher + "_" + c.student + "_" + c.projector + (c.packed ? "_packed" : "_padded");
});

// Experts and a resolvent in both models, widths and depths apart; the widening inside is the same wherever it runs.
TEST(Objective, ResNetBkTrainsOnTheBitsThatItIsEvaluatedOn) {
  const std::string teacher = weighted_model("resnet_bk", R"({"hidden_size": 48, "num_hidden_layers": 3})", 1).string();
  const std::string student = weighted_model("resnet_bk", "{}", 2).string();
  for (const char* dtype : {"float32", "bfloat16", "float16"}) {
    for (const bool packed : {false, true}) {
      SCOPED_TRACE(dtype);
      const std::string recipe = "seed = 5\n[teacher]\nmodel = " + teacher + "\ndtype = " + dtype +
                                 "\n[student]\nmodel = " + student + "\ndtype = " + dtype +
                                 "\n[objective]\nfeature_weight = 0.2\nlayer_weight = 0.1\n";
      const data::Batch batch = random_batch({.packed = packed}, 3);
      const Distillation objective = distillation_of(recipe);
      const Terms terms = expect_training_equals_evaluation(objective, batch, {.step = 3, .total_steps = 10});
      EXPECT_TRUE(has_term(terms, "feature") && has_term(terms, "hidden.1"));
      for (const TrainedParameter& p : objective.trained_parameters()) EXPECT_TRUE(p.tensor.grad().defined()) << p.name;
      expect_clean_on_meta(recipe, batch);
    }
  }
}

TEST(Objective, LossIsTheFormulaOfItsTerms) {
  const Distillation objective =
      distillation_of(pair_recipe("[objective]\nalpha = 0.6\ntemperature = 2\nlabel_smoothing = 0.1\n"));
  const data::Batch batch = random_batch({}, 3);
  const Terms terms = objective.forward(batch, {});
  const at::NoGradGuard no_gradient;
  models::ModelInput input;
  input.ids = batch.student.ids;
  input.attention_mask = batch.student.attention_mask;
  const auto logits = [&](const models::BuiltModel& model) {
    const at::Tensor z = model.model->head(model.model->encode(input).last).to(at::kDouble);
    return z.narrow(1, 0, z.size(1) - 1).flatten(0, 1);
  };
  const at::Tensor labels = batch.student.labels.narrow(1, 1, 9).flatten(), keep = labels.ne(-100);
  const at::Tensor zs = logits(objective.student()).index({keep}), zt = logits(*objective.teacher()).index({keep});
  const at::Tensor lt = (zt / 2).log_softmax(-1), ls = (zs / 2).log_softmax(-1), full = zs.log_softmax(-1);
  const double n = static_cast<double>(keep.sum().item<int64_t>());
  const double kd = (lt.exp() * (lt - ls)).sum().item<double>() * 4 / n;
  const at::Tensor gold = full.gather(1, labels.index({keep}).unsqueeze(1)).squeeze(1);
  const double ce = -(0.9 * gold + 0.1 * full.mean(-1)).sum().item<double>() / n;
  EXPECT_EQ(terms.targets, static_cast<int64_t>(n));
  EXPECT_NEAR(term(terms, "kd")->value.item<double>(), kd, 1e-5 * kd);
  EXPECT_NEAR(term(terms, "ce")->value.item<double>(), ce, 1e-5 * ce);
  EXPECT_NEAR(terms.loss.item<double>(), 0.6 * kd + 0.4 * ce, 1e-5 * ce);
}

TEST(Objective, EightSmallBatchesAreOneLarge) {
  // Everything that is a mean over tokens or sequences; batch-wise contrasts are not.
  const std::string recipe = pair_recipe(
      "[projector]\nkind = logit\n[objective]\nfeature_weight = 0.1\nlayer_weight = 0.1\nattention_weight = 0.1\n"
      "mixer_weight = 0.1\nembedding_weight = 0.3\n");
  const Distillation objective = distillation_of(recipe);
  const data::Batch batch = random_batch({.rows = 8, .length = 12}, 9);
  const Terms whole = objective.forward(batch, {});
  clear_gradients(objective);
  whole.loss.backward();
  std::vector<at::Tensor> wanted;
  for (const auto& p : objective.trained_parameters()) wanted.push_back(p.tensor.grad().clone());
  clear_gradients(objective);
  double loss = 0;
  for (int64_t row = 0; row < 8; ++row) {
    const Terms part =
        objective.forward(test::rows_of(batch, row, 1), {.update_targets = whole.targets, .update_sequences = 8});
    part.loss.backward();
    loss += part.loss.item<double>();
  }
  EXPECT_NEAR(loss, whole.loss.item<double>(), 2e-6 * loss);
  const auto parameters = objective.trained_parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double error = (parameters[i].tensor.grad() - wanted[i]).norm().item<double>();
    EXPECT_LE(error, 1e-5 * wanted[i].norm().item<double>() + 1e-9) << parameters[i].name;
  }
}

TEST(Objective, BatchWithoutTargetsCostsNothing) {
  const Distillation objective = distillation_of(pair_recipe("[projector]\nkind = logit\n", "bfloat16", "bfloat16"));
  data::Batch batch = random_batch({}, 3);
  batch.student.labels.fill_(-100);
  for (const int64_t update_targets : {int64_t{0}, int64_t{40}}) {
    const Terms terms = objective.forward(batch, {.update_targets = update_targets});
    EXPECT_EQ(terms.targets, 0);
    EXPECT_EQ(terms.loss.item<double>(), 0.0);
    clear_gradients(objective);
    terms.loss.backward();
    for (const auto& p : objective.trained_parameters()) {
      ASSERT_TRUE(p.tensor.grad().defined()) << p.name;
      EXPECT_EQ(p.tensor.grad().abs().sum().item<double>(), 0.0) << p.name;
    }
  }
}

TEST(Objective, SupervisionDecidesWhatTheLogitProjectorLearnsFrom) {
  const data::Batch batch = random_batch({}, 3);
  auto gradient = [&](const std::string& keys) {
    const Distillation objective = distillation_of(pair_recipe("[projector]\nkind = logit\n" + keys));
    objective.forward(batch, {}).loss.backward();
    for (const auto& p : objective.trained_parameters()) {
      if (p.name == "projector.logit.weight") return p.tensor.grad();
    }
    return at::Tensor();
  };
  // Supervised, the divergence does not reach it: neither alpha nor the temperature changes its gradient.
  const at::Tensor supervised = gradient("[objective]\nalpha = 0.3\n");
  EXPECT_TRUE(at::equal(supervised, gradient("[objective]\nalpha = 0.9\ntemperature = 3\n")));
  EXPECT_GT(supervised.norm().item<double>(), 0.0);
  const at::Tensor alone = gradient("supervision = none\n[objective]\nalpha = 0.3\n");
  EXPECT_GT((alone - supervised).norm().item<double>(), 1e-3 * supervised.norm().item<double>());
  // Its cross-entropy leaves the student's head alone.
  const Distillation objective =
      distillation_of(pair_recipe("[projector]\nkind = logit\n[objective]\nalpha = 1\nprojector_ce_weight = 50\n"));
  const Distillation without =
      distillation_of(pair_recipe("[projector]\nkind = logit\n[objective]\nalpha = 1\nprojector_ce_weight = 0\n"));
  objective.forward(batch, {}).loss.backward();
  without.forward(batch, {}).loss.backward();
  EXPECT_TRUE(
      at::equal(objective.student().model->head_weight().grad(), without.student().model->head_weight().grad()));
}

TEST(Objective, ProjectorsAreMadeLikeTheModelTheyAttachTo) {
  const Distillation objective = distillation_of(
      pair_recipe("[projector]\nkind = logit\n[objective]\nfeature_weight = 0.1\n", "float16", "bfloat16"));
  for (const auto& [name, tensor] : objective.projector_tensors()) {
    EXPECT_EQ(tensor.scalar_type(), name.starts_with("projector.logit") ? at::kHalf : at::kBFloat16) << name;
    EXPECT_TRUE(tensor.requires_grad()) << name;
    if (!name.ends_with("weight")) continue;
    const double deviation = tensor.to(at::kFloat).std().item<double>();
    EXPECT_NEAR(deviation, 0.01, 0.001) << name;
  }
  const Distillation again = distillation_of(pair_recipe("[projector]\nkind = logit\n", "float16", "bfloat16"));
  EXPECT_TRUE(at::equal(again.projector_tensors()[0].second, objective.projector_tensors()[0].second));
  const MetaRun run = run_on_meta(pair_recipe("[projector]\nkind = logit\ndtype = float32\n", "float16", "bfloat16"),
                                  random_batch({}, 3));
  EXPECT_TRUE(run.violations.empty());
  EXPECT_TRUE(run.casts.contains("projector.logit (door)"));
}

TEST(Objective, EveryTermRunsInHalfPrecisionAndOnMeta) {
  const std::string more =
      "[objective]\ncurriculum = s2\nembedding_weight = 0.1\nmixer_weight = 0.1\ndivergence = jsd\nhidden_loss = "
      "cosine\n";
  for (const bool packed : {false, true}) {
    const data::Batch batch = random_batch({.packed = packed}, 3);
    const std::string recipe = pair_recipe(more, "bfloat16", "float16");
    const Distillation objective = distillation_of(recipe);
    const Terms terms = expect_training_equals_evaluation(objective, batch, {.step = 8, .total_steps = 10});
    for (const char* name : {"kd", "ce", "feature", "hidden.1", "mixer.0", "mixer.1", "attention.0", "attention.1",
                             "contrastive", "embedding"})
      EXPECT_GT(term(terms, name)->value.item<double>(), 0.0) << name;
    for (const auto& p : objective.trained_parameters()) {
      ASSERT_TRUE(p.tensor.grad().defined()) << p.name;
      // A lone key's softmax is flat, and a bias before a LayerNorm may be; matrices all learn.
      if (p.decays) {
        EXPECT_GT(p.tensor.grad().abs().sum().item<double>(), 0.0) << p.name;
      }
    }
    expect_clean_on_meta(recipe, batch);
  }
}

TEST(Objective, CurriculumFollowsTheProgressInEvaluationToo) {
  const Distillation objective = distillation_of(pair_recipe("[objective]\ncurriculum = s2\n"));
  const data::Batch batch = random_batch({}, 3);
  const at::NoGradGuard no_gradient;
  const auto weight = [&](int64_t step, const std::string& name) {
    const Terms terms = objective.forward(batch, {.step = step, .total_steps = 100});
    for (const Term& t : terms.terms) {
      if (t.name == name) return t.weight;
    }
    return 0.0;
  };
  EXPECT_DOUBLE_EQ(weight(0, "kd"), 0.1);
  EXPECT_DOUBLE_EQ(weight(0, "ce"), 0.9);
  EXPECT_NEAR(weight(10, "kd"), 0.4, 1e-12);
  EXPECT_DOUBLE_EQ(weight(20, "kd"), 0.7);
  EXPECT_DOUBLE_EQ(weight(10, "feature"), 0.0);
  EXPECT_NEAR(weight(25, "feature"), 0.05, 1e-12);
  EXPECT_NEAR(weight(25, "attention.0"), 0.025, 1e-12);
  EXPECT_DOUBLE_EQ(weight(40, "feature"), 0.1);
  EXPECT_DOUBLE_EQ(weight(39, "hidden.1"), 0.0);
  EXPECT_DOUBLE_EQ(weight(70, "hidden.1"), 0.05);
  EXPECT_NEAR(weight(85, "contrastive"), 0.025, 1e-12);
  const TermWeights weights(settings_of("[objective]\ncurriculum = s2\n"), false);
  EXPECT_DOUBLE_EQ(weights.temperature(0), 2.0);
  EXPECT_DOUBLE_EQ(weights.temperature(0.5), 1.75);
  EXPECT_DOUBLE_EQ(weights.temperature(1), 1.5);
  EXPECT_DOUBLE_EQ(TermWeights(settings_of(""), false).temperature(0.3), 1.0);
}

TEST(Objective, TrainedParametersHaveGroupsAndNoDecayForVectors) {
  const Distillation objective =
      distillation_of(pair_recipe("[objective]\nfeature_weight = 0.1\nattention_weight = 1\n"));
  std::map<std::string, int> groups;
  for (const auto& p : objective.trained_parameters()) {
    ++groups[p.group];
    EXPECT_EQ(p.decays,
              !p.name.ends_with("norm.weight") && !p.name.ends_with("bias") && !p.name.ends_with("log_temperature"))
        << p.name;
    if (p.group == "student") {
      EXPECT_TRUE(p.name.starts_with("student.")) << p.name;
    }
  }
  EXPECT_EQ(groups["student"], 2 * 9 + 3);
  EXPECT_EQ(groups["projector"], 2 + 2 * 2);
}

TEST(Objective, SelfTeacherIsTheStudentAsItStarts) {
  const std::string recipe = "[teacher]\nkind = self\n[student]\nmodel = " + student_folder().string() + "\n";
  Distillation objective = distillation_of(recipe);
  const data::Batch batch = random_batch({}, 3);
  EXPECT_EQ(term(objective.forward(batch, {}), "kd")->value.item<double>(), 0.0);
  const at::NoGradGuard no_gradient;
  objective.student().model->head_weight().mul_(1.5);
  objective.after_update({});
  EXPECT_GT(term(objective.forward(batch, {}), "kd")->value.item<double>(), 0.01);
  EXPECT_EQ(message_of([&] { distillation_of(recipe + "dtype = float32\n[teacher2]\n"); }).substr(0, 2), "2:");
}

TEST(Objective, AverageTeacherFollowsTheStudentInFloat32) {
  Distillation objective = distillation_of("[teacher]\nkind = ema\n[student]\nmodel = " + student_folder().string() +
                                           "\ndtype = bfloat16\n[objective]\nema_decay = 0.9\n");
  const data::Batch batch = random_batch({}, 3);
  EXPECT_EQ(term(objective.forward(batch, {}), "kd")->value.item<double>(), 0.0);
  const at::NoGradGuard no_gradient;
  at::Tensor student = objective.student().model->head_weight();
  const at::Tensor before = student.to(at::kFloat);
  student.add_(1.0);
  const at::Tensor after = student.to(at::kFloat);
  for (int i = 0; i < 3; ++i) objective.after_update({});
  EXPECT_GT(term(objective.forward(batch, {}), "kd")->value.item<double>(), 0.0);
  const at::Tensor wanted = after + (before - after) * (0.9 * 0.9 * 0.9);
  at::Tensor average;
  for (const auto& [name, tensor] : objective.projector_tensors()) {
    if (name == "teacher_ema.lm_head.weight") average = tensor;
  }
  ASSERT_TRUE(average.defined());
  EXPECT_EQ(average.scalar_type(), at::kFloat);
  EXPECT_LT((average - wanted).abs().max().item<double>(), 1e-6);
  EXPECT_TRUE(at::equal(objective.teacher()->model->head_weight(), average.to(at::kBFloat16)));
  // A checkpoint fills the averages in place: the teacher is made anew from them.
  objective.fill([&] { average.copy_(before); });
  objective.forward(batch, {});
  EXPECT_TRUE(at::equal(objective.teacher()->model->head_weight(), before.to(at::kBFloat16)));
}

TEST(Objective, MeasuresWhatEvaluationReports) {
  const Distillation same =
      distillation_of("[teacher]\nkind = self\n[student]\nmodel = " + student_folder().string() + "\n");
  const data::Batch batch = random_batch({}, 3);
  const at::NoGradGuard no_gradient;
  Measures m;
  const Terms terms = same.forward(batch, {}, &m);
  EXPECT_EQ(m.targets, terms.targets);
  EXPECT_EQ(m.compared, m.targets);
  EXPECT_EQ(m.top1_agreements, m.targets);
  EXPECT_DOUBLE_EQ(m.top5_overlap, static_cast<double>(m.targets));
  EXPECT_EQ(m.kl, 0.0);
  EXPECT_EQ(m.student_cross_entropy, m.teacher_cross_entropy);
  EXPECT_NEAR(m.student_cross_entropy / static_cast<double>(m.targets), term(terms, "ce")->value.item<double>(), 1e-5);
  const Distillation differ = distillation_of(pair_recipe());
  Measures other;
  differ.forward(batch, {}, &other);
  EXPECT_GT(other.kl, 0.0);
  EXPECT_NE(other.student_cross_entropy, other.teacher_cross_entropy);
}

}  // namespace
}  // namespace limbeck::objective
