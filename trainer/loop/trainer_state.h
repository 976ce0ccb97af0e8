// What a Trainer holds: private to the files trainer*.cpp. Built in steps that all ranks take or none.
#pragma once
#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "trainer/energy/step_energy.h"
#include "trainer/loop/run_options.h"
#include "trainer/loop/run_saver.h"
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
  void open_folder(const recipe::Settings& settings, bool restarted);
  void make_session(const TrainRequest& request);
  void go_on_from_checkpoint(const recipe::Settings& settings);
  void begin_logs(const recipe::Settings& settings);

  int64_t step() const { return session->steps_done(); }
  // One boundary between updates: what all ranks know and do.
  struct Boundary {
    bool stop = false, save = false, give_up = false;
  };
  Boundary meet(bool wants_stop);

  bool advance(bool wants_stop);
  int64_t peak_bytes() const;
  void record(const StepRecord& record, double waited_s);
  void begin_energy();
  void add_rank_times(double computing_s, std::vector<std::pair<std::string, double>>& values) const;
  void evaluate();
  bool patience_is_over() const;
  void save(bool wait);
  void take_outcomes();
  void log(int64_t step, const std::vector<std::pair<std::string, double>>& values, const std::string& phase);
  void compare_replicas() const;
  std::filesystem::path save_model(const std::string& name);
  TrainResult result() const;

  const RunOptions options;
  TrainObserver& observer;
  parallel::Communicator& ranks;
  SteadyTime begin = std::chrono::steady_clock::now();

  std::unique_ptr<RunFolder> folder;
  std::filesystem::path from;  // the checkpoint to go on from; empty: a new run
  std::unique_ptr<session::Session> session;
  std::unique_ptr<metrics::MetricsLog> metrics;  // of the first rank
  bool log_waits = false;                        // for room on the disk
  std::optional<energy::StepEnergy> energy;      // where a meter exists
  std::unique_ptr<RunSaver> saver;
  int64_t saved_step = -1;  // newest that is known to be on disk
  double earlier_s = 0;     // of training before this process
  std::filesystem::path best_model;
};

}  // namespace limbeck::loop
