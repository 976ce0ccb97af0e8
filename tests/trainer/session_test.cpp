// A session gives the bits of `limbeck train`, alone, after another and beside another, and leaves the process as it
// was.
#include "trainer/session/session.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <csignal>
#include <exception>
#include <functional>

#include "modules/memory/host_memory.h"
#include "modules/models/weights/save_model.h"
#include "tests/modules/weights_files.h"
#include "tests/support/gloo_ranks.h"
#include "tests/support/recipe_settings.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/token_shards.h"
#include "tests/trainer/message_of.h"
#include "tests/trainer/tiny_distillation.h"
#include "trainer/build/recipe_pair.h"
#include "trainer/cli/app.h"

namespace limbeck::session {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSteps = 5;

// Documents of random tokens.
fs::path token_set(const fs::path& folder, uint64_t seed) {
  test::TokenSet set;
  set.vocabulary = 97;
  set.end_of_sequence = 2;
  const at::Tensor ids = test::random_stream({.rows = 24, .length = 20}, seed).ids;
  set.shards.resize(1);
  for (int64_t row = 0; row < ids.size(0); ++row) {
    test::TokenDocument& document = set.shards[0].emplace_back();
    for (int64_t i = 0; i < ids.size(1); ++i) document.ids.push_back(ids[row][i].item<int32_t>());
  }
  test::write_token_set(folder, set);
  return folder;
}

// A recipe of two micro-batches an update, averaged weights, and a term that has a projector of its own.
std::string recipe_of(const std::string& more = "", const fs::path& student = {}) {
  static const test::TemporaryFolder data;
  static const fs::path train = token_set(data / "train", 11), validation = token_set(data / "validation", 12);
  static const fs::path teacher = test::weighted_model("llama", R"({"hidden_size": 48, "num_hidden_layers": 4})", 1);
  static const fs::path own = test::weighted_model("llama", "{}", 2);
  return "seed = 5\n[teacher]\nmodel = " + teacher.string() +
         "\n[student]\nmodel = " + (student.empty() ? own : student).string() + "\n[data]\ntrain = " + train.string() +
         "\nvalidation = " + validation.string() +
         "\nbatch_size = 2\nsequence_length = 16\n[train]\naccumulate = 2\nsteps = " + std::to_string(kSteps) +
         " steps\n[optim]\nlearning_rate = 1e-2\nema = 0.5\n[objective]\nfeature_weight = 0.2\n" + more;
}

struct Driven {
  std::vector<double> losses;
  std::vector<std::pair<std::string, double>> evaluation;
  std::string student, projectors;  // bytes of the saved files
  bool operator==(const Driven&) const = default;
};

void step(Session& session, int64_t steps, Driven& driven) {
  for (int64_t i = 0; i < steps; ++i) driven.losses.push_back(session.step().update.loss);
}

void end(Session& session, Driven& driven) {
  driven.evaluation = session.evaluate().values;
  const test::TemporaryFolder folder;
  session.save_model(folder / "student");
  driven.student = test::read_bytes(folder / "student" / "model.safetensors");
  driven.projectors = test::read_bytes(folder / "student" / "projectors.safetensors");
}

SessionRequest request_of(const recipe::Settings& settings, parallel::Communicator& ranks) {
  return {.settings = settings, .registries = test::builtin_registries(), .ranks = ranks};
}

Driven driven_alone(const std::string& ini, parallel::Communicator& ranks) {
  const recipe::Settings settings = test::settings_of(ini);
  Session session(request_of(settings, ranks));
  Driven driven;
  step(session, session.total_steps(), driven);
  end(session, driven);
  return driven;
}

Driven driven_alone(const std::string& ini) { return driven_alone(ini, *parallel::make_solo()); }

class Heard : public Listener {
 public:
  void noted(const std::string& line) override { lines.push_back("note: " + line); }
  void warned(const std::string& line) override { lines.push_back("warning: " + line); }
  std::vector<std::string> lines;
};

// What a session might change of its process.
struct Process {
  int threads = at::get_num_threads();
  bool deterministic = at::globalContext().deterministicAlgorithms(), counted = memory::HostMemory::counting();
  int64_t peak = memory::HostMemory::peak_bytes();
  std::vector<void (*)(int)> handlers;
  bool operator==(const Process&) const = default;
};

Process process_now() {
  Process now;
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGPIPE, SIGXFSZ}) {
    struct sigaction action {};
    ::sigaction(signal, nullptr, &action);
    now.handlers.push_back(action.sa_handler);
  }
  return now;
}

// Everything that `work` writes to the two standard streams; a test that fails inside is still heard.
std::string said_by(const std::function<void()>& work) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  std::exception_ptr thrown;
  try {
    work();
  } catch (...) {
    thrown = std::current_exception();
  }
  std::string said = testing::internal::GetCapturedStdout();
  said += testing::internal::GetCapturedStderr();
  if (thrown) std::rethrow_exception(thrown);
  return said;
}

TEST(Session, BuildsStepsEvaluatesSavesAndGoesOnWithoutAWordOrATraceInTheProcess) {
  const test::TemporaryFolder folder;
  const recipe::Settings settings = test::settings_of(recipe_of());
  const auto ranks = parallel::make_solo();
  const Process before = process_now();
  Driven whole, resumed;
  const std::string said = said_by([&] {
    fs::path checkpoint;
    {
      Session session(request_of(settings, *ranks));
      EXPECT_EQ(session.total_steps(), kSteps);
      step(session, 3, whole);
      session.evaluate();
      checkpoint = session.save_checkpoint(folder / "checkpoints");
      session.save_model(folder / "student");
      step(session, 2, whole);
      end(session, whole);
    }
    SessionRequest again = request_of(settings, *ranks);
    again.from = checkpoint;
    Session session(again);
    EXPECT_EQ(session.steps_done(), 3);
    resumed.losses.assign(whole.losses.begin(), whole.losses.begin() + 3);
    step(session, 2, resumed);
    end(session, resumed);
  });
  EXPECT_EQ(said, "");
  EXPECT_TRUE(process_now() == before);
  EXPECT_TRUE(resumed == whole);
  EXPECT_TRUE(whole == driven_alone(recipe_of()));  // what is done between the steps is no part of them
  EXPECT_NE(whole.losses.front(), whole.losses.back());
  EXPECT_FALSE(whole.student.empty() || whole.projectors.empty());
}

TEST(Session, GivesTheBitsOfLimbeckTrain) {
  const test::TemporaryFolder folder;
  test::write_bytes(folder / "my.ini", recipe_of());
  const fs::path run = folder / "run";
  said_by([&] { cli::App({"train", (folder / "my.ini").string(), "--quiet", "--run=" + run.string()}).run(); });
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, SIG_DFL);  // which the command listens to
  const Driven driven = driven_alone(recipe_of());
  EXPECT_EQ(driven.student, test::read_bytes(run / "final" / "model.safetensors"));
  EXPECT_EQ(driven.projectors, test::read_bytes(run / "final" / "projectors.safetensors"));
}

TEST(Session, TwoBesideEachOtherAreTwoAlone) {
  const std::vector<std::string> recipes = {recipe_of(), recipe_of("divergence = reverse_kl\ntemperature = 2\n")};
  const recipe::Settings first = test::settings_of(recipes[0]), second = test::settings_of(recipes[1]);
  const auto ranks = parallel::make_solo();
  Session a(request_of(first, *ranks)), b(request_of(second, *ranks));
  Driven of_a, of_b;
  for (int64_t i = 0; i < kSteps; ++i) {
    step(a, 1, of_a);
    step(b, 1, of_b);
    b.evaluate();
  }
  end(b, of_b);
  end(a, of_a);
  EXPECT_TRUE(of_a == driven_alone(recipes[0]));
  EXPECT_TRUE(of_b == driven_alone(recipes[1]));
  EXPECT_NE(of_a.student, of_b.student);
}

TEST(Session, OneAfterTheOtherOnTwoRanksIsOneAlone) {
  const std::string tree = "[parallel]\nreduce = tree\nzero = ";
  const Driven alone = driven_alone(recipe_of(tree + "0\n"));
  const auto thrown = test::run_gloo_ranks(2, [&](std::unique_ptr<parallel::Communicator> ranks, const auto&) {
    for (const char* zero : {"0\n", "2\n", "3\n"}) {
      const recipe::Settings settings = test::settings_of(recipe_of(tree + zero));
      Session session(request_of(settings, *ranks));
      Driven driven;
      step(session, 3, driven);
      const test::TemporaryFolder folder;
      const std::string name = (folder / "checkpoints").string();
      const auto of_first = ranks->all_gather(name)[0];
      const fs::path saved = session.save_checkpoint(of_first);
      session.step();
      session.restore(saved);
      step(session, 2, driven);
      driven.evaluation = session.evaluate().values;
      EXPECT_EQ(driven.losses, alone.losses) << "zero = " << zero;
      EXPECT_EQ(driven.evaluation, alone.evaluation) << "zero = " << zero;
      const auto of_all = ranks->all_gather((folder / "student").string());
      session.save_model(of_all[0]);
      if (ranks->rank() == 0) {
        EXPECT_EQ(test::read_bytes(folder / "student" / "model.safetensors"), alone.student) << "zero = " << zero;
      }
    }
  });
  for (const std::string& message : thrown) EXPECT_EQ(message, "");
}

// As when an objective is chosen by trying several on models that are read once.
TEST(Session, TakesAPairThatAnotherHasTrained) {
  const test::TemporaryFolder folder;
  const std::string other = recipe_of("divergence = jsd\n"), before = recipe_of("[parallel]\nreduce = tree\n");
  const auto ranks = parallel::make_solo();
  const recipe::Settings first = test::settings_of(before), second = test::settings_of(other);
  SessionRequest request = request_of(first, *ranks);
  request.pair = build::build_pair(first, objective::Materialize::kWeights);
  {
    Session session(request);
    Driven ignored;
    step(session, 2, ignored);
    EXPECT_EQ(&session.objective().pair(), request.pair.get());
    // The trained weights, not their average.
    models::save_model(session.student(), folder / "trained", {});
  }
  SessionRequest over = request_of(second, *ranks);
  over.pair = request.pair;
  Session session(over);
  Driven driven;
  step(session, kSteps, driven);
  end(session, driven);
  EXPECT_TRUE(driven == driven_alone(recipe_of("divergence = jsd\n", folder / "trained")));
}

TEST(Session, RefusesACheckpointOfAnotherRunUnlessItMayDiffer) {
  const test::TemporaryFolder folder;
  const auto ranks = parallel::make_solo();
  const recipe::Settings settings = test::settings_of(recipe_of());
  const fs::path saved = [&] {
    Session session(request_of(settings, *ranks));
    session.step();
    return session.save_checkpoint(folder.path());
  }();
  const recipe::Settings other = test::settings_of(recipe_of("temperature = 3\n"));
  SessionRequest request = request_of(other, *ranks);
  Heard heard;
  request.listener = &heard;
  request.from = saved;
  const std::string refused = test::message_of([&] { Session session(request); });
  EXPECT_NE(refused.find("is of another run: objective.temperature was not set, is 3"), refused.npos) << refused;
  request.allowed = {"objective.temperature"};
  Session session(request);
  EXPECT_EQ(session.steps_done(), 1);
  ASSERT_FALSE(heard.lines.empty());
  EXPECT_EQ(heard.lines.back(),
            "warning: resumed with another recipe (--resume.allow): objective.temperature was not set, is 3");
}

// As a checkpoint says of itself that was saved before its program had the key.
RunIdentity without(RunIdentity identity, const std::string& key) {
  EXPECT_EQ(identity.recipe.erase(key), 1u) << key;
  return identity;
}

TEST(RunIdentity, AKeyThatTheSavingProgramDidNotHaveIsADifferenceWhereItIsSet) {
  const RunIdentity now = identity_of(test::settings_of(recipe_of()), "train", "validation");
  std::vector<std::string> notes;
  require_same_run(without(now, "student.train_codes"), now, {}, "step-3", notes);
  EXPECT_TRUE(notes.empty());
  const std::string said = test::message_of([&] { require_same_run(without(now, "seed"), now, {}, "step-3", notes); });
  EXPECT_NE(said.find("step-3: is of another run: seed was 0, is 5: "), said.npos) << said;
}

TEST(Session, WhatItsDriverMayNotAskIsAFaultOfTheDriver) {
  const auto ranks = parallel::make_solo();
  const recipe::Settings settings = test::settings_of(recipe_of());
  Session session(request_of(settings, *ranks));
  EXPECT_EQ(session.meet({3, 0}), (std::vector<int64_t>{3, 0}));
  EXPECT_THROW(session.meet(), std::logic_error);
  while (session.steps_done() < session.total_steps()) session.step();
  EXPECT_THROW(session.step(), std::logic_error);
}

}  // namespace
}  // namespace limbeck::session
