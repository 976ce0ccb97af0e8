// What `check` lists of casts against what the same step does on the CPU: every change of a floating dtype that ATen is
// asked for while a real update runs has a named cast in the list, and the list has no other.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "modules/precision/casts.h"
#include "modules/precision/precision.h"
#include "tests/support/recipe_settings.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/build/model_sharing.h"
#include "trainer/build/recipe_pair.h"
#include "trainer/check/dry_run.h"
#include "trainer/session/update.h"

namespace limbeck::check {
namespace {

using Pair = std::pair<std::string, std::string>;  // from, to

// Copies that change a floating dtype, as ATen's dispatcher sees them: nothing of ours takes part in the count.
class SeenCasts {
 public:
  SeenCasts() {
    active = this;
    handle_ = at::addThreadLocalCallback(at::RecordFunctionCallback(&SeenCasts::begin, &SeenCasts::end)
                                             .needsInputs(true)
                                             .scopes({at::RecordScope::FUNCTION}));
  }
  ~SeenCasts() {
    at::removeCallback(handle_);
    active = nullptr;
  }
  std::map<Pair, int64_t> seen;

 private:
  struct Inside : at::ObserverContext {};

  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
    const std::string name = function.name();
    if (name.starts_with("limbeck::")) {  // accumulates as wide as it must: the operator's own affair
      ++active->inside_;
      return std::make_unique<Inside>();
    }
    // Every conversion ends in it, that of .to() too. A number that became a tensor is none of ours.
    if (name != "aten::copy_" || active->inside_ > 0) return nullptr;
    const at::Tensor &to = function.inputs()[0].toTensor(), &from = function.inputs()[1].toTensor();
    if (from.dim() > 0) active->add(from.scalar_type(), to.scalar_type());
    return nullptr;
  }
  static void end(const at::RecordFunction&, at::ObserverContext* context) {
    if (dynamic_cast<Inside*>(context) != nullptr) --active->inside_;
  }
  void add(at::ScalarType from, at::ScalarType to) {
    if (from == to || !at::isFloatingType(from) || !at::isFloatingType(to)) return;
    ++seen[{precision::dtype_name(from), precision::dtype_name(to)}];
  }
  static inline thread_local SeenCasts* active = nullptr;
  int inside_ = 0;  // operators of ours
  at::CallbackHandle handle_;
};

struct CastCase {
  std::string teacher, student, divergence;
};

void PrintTo(const CastCase& c, std::ostream* out) { *out << c.teacher << " to " << c.student << ", " << c.divergence; }

std::string recipe_of(const CastCase& c) {
  static const auto teacher = test::weighted_model("llama", R"({"hidden_size": 48, "num_hidden_layers": 4})", 1);
  static const auto student = test::weighted_model("llama", "{}", 2);
  return "[teacher]\nmodel = " + teacher.string() + "\ndtype = " + c.teacher +
         "\n[student]\nmodel = " + student.string() + "\ndtype = " + c.student +
         "\n[data]\npacking = padded\nbatch_size = 3\n" +
         "sequence_length = 10\n[objective]\ndivergence = " + c.divergence +
         "\nfeature_weight = 0.2\nlayer_weight = 0.1\nhidden_projector = linear\n[generation]\nmax_new_tokens = 2\n";
}

struct RealStep {
  std::map<precision::CastLog::Key, precision::CastLog::Cost> named;
  std::map<Pair, int64_t> seen;
};

RealStep real_update(const recipe::Settings& settings) {
  const auto pair = build::build_pair(settings, objective::Materialize::kWeights);
  const auto options = objective::read_options(settings, test::builtin_registries(), *pair);
  agreement::PairAgreement agreement(settings, options, *pair);
  objective::Distillation objective(options, pair, agreement.vocabulary({}));
  const auto ranks = parallel::make_solo();
  const auto optimizer = build::make_optimizer(settings, objective, *ranks, 1, 1000);
  const std::vector<data::Batch> batches = {test::random_batch({.rows = 3, .length = 10}, 3)};
  const auto progress = session::update_progress(batches, 0, 1000, optimizer->loss_scale());
  RealStep step;
  precision::CastLog log;
  SeenCasts seen;
  session::run_update(objective, *optimizer, batches, progress, *ranks);
  step.named = log.casts();
  step.seen = seen.seen;
  return step;
}

class ListedCasts : public ::testing::TestWithParam<CastCase> {};

TEST_P(ListedCasts, AreThoseOfARealStep) {
  const recipe::Settings settings = test::settings_of(recipe_of(GetParam()));
  const CheckReport report = dry_run(settings, test::builtin_registries());
  for (const std::string& line : report.ran_wrongly) ADD_FAILURE() << line;
  std::map<std::string, int64_t> listed, done;
  for (const CastRow& row : report.casts) {
    if (row.phase == "train") listed[row.place + ": " + row.from + " to " + row.to] += row.count;
  }
  const RealStep step = real_update(settings);
  std::map<Pair, int64_t> named;
  for (const auto& [key, cost] : step.named) {
    const Pair pair = {precision::dtype_name(key.from), precision::dtype_name(key.to)};
    done[key.place + ": " + pair.first + " to " + pair.second] += cost.count;
    if (cost.bytes > 0) named[pair] += cost.count;  // a change inside an operator has no copy of its own
  }
  EXPECT_EQ(listed, done);
  EXPECT_EQ(named, step.seen) << "a cast without a name";
  const auto at_the_heads = [&](const std::string& side) {
    return std::any_of(report.casts.begin(), report.casts.end(),
                       [&](const CastRow& row) { return row.place.find(side + " head") != std::string::npos; });
  };
  EXPECT_EQ(at_the_heads("teacher"), GetParam().teacher != "float32") << "the teacher's side of the logits' loss";
  EXPECT_EQ(at_the_heads("student"), GetParam().student != "float32") << "the student's side of the logits' loss";
}

INSTANTIATE_TEST_SUITE_P(
    Pairs, ListedCasts,
    ::testing::Values(CastCase{"float16", "float32", "forward_kl"}, CastCase{"float16", "float32", "uld"},
                      CastCase{"float32", "bfloat16", "forward_kl"}, CastCase{"float32", "float16", "reverse_kl"},
                      CastCase{"float32", "float32", "forward_kl"}),
    [](const auto& test) { return test.param.teacher + "_to_" + test.param.student + "_" + test.param.divergence; });

}  // namespace
}  // namespace limbeck::check
