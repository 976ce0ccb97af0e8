// The training loop: data, objective, optimizer, evaluation and the run folder, joined. What it has to say goes to an
// observer, so that it never knows of a terminal.
#pragma once
#include <atomic>
#include <memory>
#include <string>

#include "trainer/evaluate/evaluator.h"
#include "trainer/loop/run_folder.h"
#include "trainer/loop/update.h"

namespace limbeck::loop {

struct StepRecord {
  int64_t step = 0, total_steps = 0;  // steps done
  double seconds = 0;                 // of this update, waiting for data included
  double tokens_per_second = 0;       // tokens that went through the student
  UpdateResult update;
};

class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void noted(const std::string& line) = 0;
  virtual void warned(const std::string& line) = 0;
  virtual void stepped(const StepRecord& record) = 0;
  virtual void evaluated(int64_t step, const evaluate::Evaluation& evaluation, bool best) = 0;
};

struct TrainResult {
  int64_t steps = 0;
  double seconds = 0;
  evaluate::Evaluation last, best;  // empty without data.validation
  int64_t best_step = 0, skipped = 0, peak_bytes = 0;
  std::filesystem::path final_model, best_model;
  bool stopped = false;  // by request, after saving
};

class Trainer {
 public:
  // Reads models and data; everything that can be refused is refused here.
  Trainer(const recipe::Settings& settings, const Registries& registries, TrainObserver& observer);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  const RunFolder& folder() const;
  const objective::Distillation& objective() const;
  // `stop`: set from a signal handler; the update under way is finished, the student saved.
  TrainResult run(const std::atomic<bool>& stop);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The request with the vocabularies of the pair, which every id must be below.
data::DataRequest fitted(data::DataRequest request, const objective::Distillation& objective);

}  // namespace limbeck::loop
