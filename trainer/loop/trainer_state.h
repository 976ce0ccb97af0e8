// What a Trainer holds: private to the files trainer*.cpp. Built in steps that all ranks take or none.
#pragma once
#include <chrono>
#include <memory>
#include <vector>

#include "trainer/build/model_sharing.h"
#include "trainer/loop/micro_batch_division.h"
#include "trainer/loop/run_options.h"
#include "trainer/loop/run_saver.h"
#include "trainer/loop/run_state.h"
#include "trainer/loop/trainer.h"
#include "trainer/metrics/metrics_log.h"

namespace limbeck::loop {

using SteadyTime = std::chrono::steady_clock::time_point;
double seconds_since(SteadyTime begin);

struct Trainer::State {
  explicit State(const TrainRequest& request);

  bool leads() const { return ranks.rank() == 0; }
  void note(const std::string& line) const;
  void warn(const std::string& line) const;

  // Construction, in this order.
  void open_folder();
  std::shared_ptr<objective::ModelPair> build_models() const;
  void open_data(const objective::ModelPair& pair);
  void make_objective(std::shared_ptr<objective::ModelPair> pair, objective::VocabularyRanks divided);
  void share_out(const std::vector<std::string>& unreached);
  void agree() const;
  void go_on_from_checkpoint();
  void begin_logs();

  // One boundary between updates: what all ranks know and do.
  struct Boundary {
    bool stop = false, save = false, give_up = false;
    objective::Progress progress;  // of the update that follows
  };
  // `failure`: why this rank has no batches; then all ranks throw it.
  Boundary meet(const std::vector<data::Batch>& batches, bool wants_stop, const std::exception_ptr& failure = nullptr);
  StepRecord update(const std::vector<data::Batch>& batches, const Boundary& boundary);
  data::Prefetcher batches_from(int64_t step, int64_t end) const;
  std::vector<data::Batch> own_batches(data::Prefetcher& prefetched) const;

  void record(const StepRecord& record, double waited_s);
  void add_rank_times(double computing_s, std::vector<std::pair<std::string, double>>& values) const;
  void evaluate(int64_t step);
  bool patience_is_over() const;
  void save(bool wait);
  void take_outcomes();
  void log(int64_t step, const std::vector<std::pair<std::string, double>>& values, const std::string& phase);
  void compare_replicas(int64_t step) const;
  std::filesystem::path save_model(const std::string& name);
  TrainResult result() const;

  const recipe::Settings& settings;
  const RunOptions options;
  const Registries& registries;
  TrainObserver& observer;
  parallel::Communicator& ranks;
  bool restarted;
  SteadyTime begin = std::chrono::steady_clock::now();

  std::unique_ptr<RunFolder> folder;
  std::filesystem::path from;  // the checkpoint to go on from; empty: a new run
  std::unique_ptr<objective::Distillation> objective;
  std::unique_ptr<data::DataSource> train, validation;
  Deal deal;
  int64_t total_steps = 0;
  std::unique_ptr<optim::Optimizer> optimizer;
  std::unique_ptr<build::TeacherShards> teacher_shards;
  std::unique_ptr<metrics::MetricsLog> metrics;  // of the first rank
  bool log_waits = false;                        // for room on the disk
  std::unique_ptr<RunSaver> saver;
  RunState run;
  int64_t saved_step = -1;  // newest that is known to be on disk
  double earlier_s = 0;     // of training before this process
  std::filesystem::path best_model;
};

}  // namespace limbeck::loop
