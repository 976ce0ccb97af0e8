// What a Session holds: private to the files session*.cpp. Built in steps that all ranks take or none.
#pragma once
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "trainer/build/model_sharing.h"
#include "trainer/session/micro_batch_division.h"
#include "trainer/session/session.h"
#include "trainer/session/session_options.h"
#include "trainer/session/step_graphs.h"

namespace limbeck::session {

// A pair that outlives its session has no way to what held its weights there.
struct PairInUse {
  std::shared_ptr<objective::ModelPair> models;
  ~PairInUse();
};

// An update that all ranks are ready for.
struct Upcoming {
  std::chrono::steady_clock::time_point begin;
  std::vector<data::Batch> batches;  // of this rank
  objective::Progress progress;      // of all ranks
};

struct Session::State {
  explicit State(const SessionRequest& request);

  // Construction, in this order.
  void build_models(const SessionRequest& request);
  void open_data(const recipe::Settings& settings);
  void make_objective(const SessionRequest& request, objective::VocabularyRanks divided);
  void share_out(const SessionRequest& request);
  void identify(const recipe::Settings& settings);
  void agree();
  void go_on_from(const std::filesystem::path& checkpoint, const std::vector<std::string>& allowed);

  bool leads() const { return ranks.rank() == 0; }
  void note(const std::string& line) const;
  void warn(const std::string& line) const;
  std::vector<data::Batch> next_batches();
  void say_what_is_not_recorded();  // once
  // Runs `body` with the averaged weights in place of the trained ones, where some are kept.
  void with_average(const std::function<void()>& body);

  const SessionOptions options;
  parallel::Communicator& ranks;
  Listener* const listener;

  PairInUse pair;
  std::unique_ptr<objective::Distillation> objective;
  std::unique_ptr<data::DataSource> train, validation;
  std::filesystem::path tokenizer;  // whose files stand beside a saved student; empty: the student's own
  Deal deal;
  int64_t total_steps = 0;
  std::unique_ptr<optim::Optimizer> optimizer;
  std::unique_ptr<build::TeacherShards> teacher_shards;
  std::unique_ptr<parallel::Communicator> checkpoint_line;
  RunState run;
  std::unique_ptr<StepGraphs> graphs;  // where the recipe asks for them
  bool said_what_is_not_recorded = false;
  bool settled = false;
  std::optional<Upcoming> upcoming;
  std::optional<data::Prefetcher> prefetched;  // from the update after `upcoming` on
};

}  // namespace limbeck::session
