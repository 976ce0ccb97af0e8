// A pair of models that exists already is given objectives, one after the other: each is as if it had the pair alone.
// And the agreement of a pair with its data, which an objective is made with.
#include "trainer/objective/model_pair.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/support/recipe_settings.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/tiny_distillation.h"

namespace limbeck::objective {
namespace {

using test::random_batch;
using test::RecipePair;

std::string recipe_of(const std::string& more, const std::string& teacher = "") {
  static const auto folder = test::weighted_model("llama", R"({"hidden_size": 48, "num_hidden_layers": 4})", 1);
  static const auto student = test::weighted_model("llama", "{}", 2);
  return "seed = 5\n[student]\nmodel = " + student.string() + "\n[teacher]\n" +
         (teacher.empty() ? "model = " + folder.string() + "\n" : teacher) + more;
}

constexpr const char* kStates = "[objective]\nfeature_weight = 0.2\nlayer_weight = 0.1\nattention_weight = 0.3\n";
constexpr const char* kLogits = "[projector]\nkind = logit\n[objective]\ndivergence = reverse_kl\ntemperature = 2\n";

ObjectiveOptions options_of(const std::string& ini, const ModelPair& pair) {
  return read_options(test::settings_of(ini), test::builtin_registries(), pair);
}

struct Outcome {
  Terms terms;
  std::vector<std::pair<std::string, at::Tensor>> gradients;
};

Outcome outcome_of(const Distillation& objective) {
  Outcome found;
  for (const TrainedParameter& p : objective.trained_parameters()) p.tensor.mutable_grad().reset();
  found.terms = objective.forward(random_batch({}, 3), {.step = 1, .total_steps = 10});
  found.terms.loss.backward();
  for (const TrainedParameter& p : objective.trained_parameters()) {
    if (p.tensor.grad().defined()) found.gradients.emplace_back(p.name, p.tensor.grad().clone());
  }
  return found;
}

void expect_same_bits(const Outcome& got, const Outcome& wanted) {
  EXPECT_TRUE(at::equal(got.terms.loss, wanted.terms.loss));
  ASSERT_EQ(got.terms.terms.size(), wanted.terms.terms.size());
  for (size_t i = 0; i < got.terms.terms.size(); ++i) {
    EXPECT_EQ(got.terms.terms[i].name, wanted.terms.terms[i].name);
    EXPECT_TRUE(at::equal(got.terms.terms[i].value, wanted.terms.terms[i].value)) << got.terms.terms[i].name;
  }
  ASSERT_EQ(got.gradients.size(), wanted.gradients.size());
  ASSERT_GT(got.gradients.size(), 20u);
  for (size_t i = 0; i < got.gradients.size(); ++i) {
    EXPECT_EQ(got.gradients[i].first, wanted.gradients[i].first);
    EXPECT_TRUE(at::equal(got.gradients[i].second, wanted.gradients[i].second)) << got.gradients[i].first;
  }
}

TEST(ModelPair, TwoObjectivesOneAfterTheOtherAreTwoFreshOnes) {
  RecipePair given(recipe_of(""));
  const Vocabulary ids = given.agreement.vocabulary({});
  for (const char* more : {kStates, kLogits, kStates}) {
    const Distillation over(options_of(recipe_of(more), *given.pair), given.pair, ids);
    EXPECT_EQ(&over.pair(), given.pair.get());
    expect_same_bits(outcome_of(over), outcome_of(test::distillation_of(recipe_of(more))));
  }
}

TEST(ModelPair, TwoObjectivesBesideEachOtherHaveTheSameModelsAndProjectorsOfTheirOwn) {
  RecipePair given(recipe_of(""));
  const Vocabulary ids = given.agreement.vocabulary({});
  const Distillation first(options_of(recipe_of(kStates), *given.pair), given.pair, ids);
  const Distillation second(options_of(recipe_of(kStates), *given.pair), given.pair, ids);
  const auto a = first.trained_parameters(), b = second.trained_parameters();
  ASSERT_EQ(a.size(), b.size());
  int64_t shared = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].tensor.is_same(b[i].tensor), a[i].group == "student") << a[i].name;
    shared += a[i].group == "student" ? 1 : 0;
  }
  EXPECT_LT(shared, static_cast<int64_t>(a.size()));
  expect_same_bits(outcome_of(first), outcome_of(second));
}

// A forward is const: it leaves every tensor as it was, also right after a student has moved.
TEST(ModelPair, AForwardChangesNoTensorOfAnAveragedTeacher) {
  RecipePair given(recipe_of("[objective]\nema_decay = 0.5\n", "kind = ema\ndtype = bfloat16\n"));
  Distillation objective(given.options, given.pair, given.agreement.vocabulary({}));
  const at::NoGradGuard no_gradient;
  given.pair->student.model->head_weight().mul_(1.5);
  objective.after_update({});
  std::vector<std::pair<at::Tensor, int64_t>> before;
  for (const auto& module : objective.contract_modules()) {
    for (const at::Tensor& tensor : module->parameters(/*recurse=*/false))
      before.emplace_back(tensor, tensor._version());
  }
  const at::Tensor loss = objective.forward(random_batch({}, 3), {}).loss;
  EXPECT_GT(loss.item<double>(), 0.0);
  for (const auto& [tensor, version] : before) EXPECT_EQ(tensor._version(), version);
  EXPECT_GT(before.size(), 40u);
}

// As a run's own recipe.ini says it, with every default written out.
TEST(ModelPair, ATeacherOfTheStudentMaySayThatItIsNotQuantized) {
  for (const char* kind : {"kind = self\n", "kind = ema\n"}) {
    const RecipePair given(recipe_of("", std::string(kind) + "quantize = none\n"));
    EXPECT_TRUE(given.pair->teacher.has_value());
    EXPECT_EQ(given.pair->average.has_value(), std::string(kind) == "kind = ema\n");
  }
}

TEST(ModelPair, OptionsOfAnotherPairAreAFaultOfTheCaller) {
  RecipePair given(recipe_of("")), alone(recipe_of("[objective]\nalpha = 0\n", "kind = none\n"));
  EXPECT_THROW(Distillation(given.options, alone.pair, {}), std::logic_error);
}

TEST(PairAgreement, AnIdOfOneDataSetIsRealForAll) {
  RecipePair given(recipe_of(""));
  data::Manifest large, small;
  large.vocabulary = 97;
  small.vocabulary = 95;
  const auto agreed = [&](const data::Manifest& train, const data::Manifest& validation) {
    return given.agreement.vocabulary({{train, "data.train (my.ini:3)"}, {validation, "data.validation (my.ini:4)"}});
  };
  EXPECT_EQ(agreed(large, small).student, 97);
  EXPECT_EQ(agreed(small, large).student, 97);
  EXPECT_EQ(agreed(small, small).teacher, 95);
  small.vocabulary = 98;
  EXPECT_NE(test::message_of([&] { agreed(large, small); }).find("data.validation (my.ini:4) has token ids up to 97"),
            std::string::npos);
}

TEST(PairAgreement, MoreClassesInTheDataThanTheStudentHasAreRefused) {
  const auto student = test::weighted_model("distilbert", R"({"num_labels": 3})", 2);
  RecipePair given("[student]\nmodel = " + student.string() + "\n[objective]\nalpha = 0\n");
  data::Manifest labelled;
  labelled.vocabulary = 97;
  for (const int64_t fewer : {0, 2, 3}) {
    labelled.classes = fewer;
    EXPECT_EQ(given.agreement.vocabulary({{labelled, "data.train (my.ini:3)"}}).student, 97);
  }
  labelled.classes = 4;
  const std::string said = test::message_of([&] { given.agreement.vocabulary({{labelled, "data.train (my.ini:3)"}}); });
  EXPECT_NE(said.find("data.train (my.ini:3) has documents of 4 classes, but student.model"), std::string::npos)
      << said;
  EXPECT_NE(said.find("tells 3 apart: name a student whose config.json has 4 labels"), std::string::npos) << said;
}

}  // namespace
}  // namespace limbeck::objective
