// The training loop: drives a session from its first step to its last, in a run folder: when to evaluate, to save, to
// stop and to say something. What it has to say goes to an observer, so that it never knows of a terminal.
#pragma once
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "trainer/evaluate/evaluator.h"
#include "trainer/loop/run_folder.h"
#include "trainer/parallel/communicator.h"
#include "trainer/session/session.h"

namespace limbeck::loop {

struct StepRecord : session::StepResult {
  // With train.progress = phases, on this rank:
  std::vector<std::pair<std::string, double>> phases;  // seconds of each
  int64_t peak_bytes = 0;                              // of tensors, during the step
};

// Only the first rank's is called.
class TrainObserver : public session::Listener {
 public:
  virtual void stepped(const StepRecord& record) = 0;
  virtual void evaluated(int64_t step, const evaluate::Evaluation& evaluation, bool best) = 0;
};

struct TrainResult {
  int64_t steps = 0;
  double seconds = 0;
  evaluate::Evaluation last, best;       // empty without data.validation
  int64_t last_step = 0, best_step = 0;  // that `last` and `best` are of
  int64_t skipped = 0, peak_bytes = 0;
  std::filesystem::path final_model, best_model;
  bool stopped = false;  // by request, after saving
  bool early = false;    // by train.early_stopping_patience
};

struct TrainRequest {
  const recipe::Settings& settings;
  const Registries& registries;
  TrainObserver& observer;
  parallel::Communicator& ranks;
  bool restarted = false;              // a launcher has started this run before
  std::vector<std::string> unreached;  // parameters that no loss reaches, as the check found: left as they are
};

class Trainer {
 public:
  // Reads models, data and the checkpoint to go on from; everything that can be refused is refused here, on all ranks.
  explicit Trainer(const TrainRequest& request);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  const RunFolder& folder() const;
  const session::Session& session() const;
  // `stop`: set from a signal handler; the update under way is finished, everything is saved, on all ranks.
  TrainResult run(const std::atomic<bool>& stop);
  // Trains `steps` updates, goes back, trains them again, and compares every tensor bit for bit. NumericError names the
  // first that differs.
  void verify_resume(int64_t steps);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace limbeck::loop
