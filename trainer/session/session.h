// What a recipe trains, under the hand of whoever drives it: builds models, data, objective and optimizer, then steps,
// evaluates and saves when it is told to. It prints nothing, asks for no run folder, and changes nothing of the
// process: allocator, threads, signals and what is counted are its driver's. Any number of them in one process.
//
//   session::Session session({.settings = settings, .registries = registries, .ranks = *ranks});
//   while (session.steps_done() < session.total_steps()) session.step();
//   session.save_model("student");
//
// `limbeck train` is loop::Trainer, which drives one. All ranks make the same calls in the same order; after an
// exception of step() or evaluate() a session is at its end.
#pragma once
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "trainer/data/data_source.h"
#include "trainer/evaluate/evaluator.h"
#include "trainer/objective/distillation.h"
#include "trainer/optim/optimizer.h"
#include "trainer/parallel/communicator.h"
#include "trainer/registry.h"
#include "trainer/session/run_state.h"
#include "trainer/session/update.h"

namespace limbeck::session {

// Hears, on the first rank, what a recipe's user should know of it.
class Listener {
 public:
  virtual ~Listener() = default;
  virtual void noted(const std::string& line) = 0;
  virtual void warned(const std::string& line) = 0;
};

struct SessionRequest {
  const recipe::Settings& settings;  // read while the session is made
  const Registries& registries;      // as well
  parallel::Communicator& ranks;     // outlive the session
  Listener* listener = nullptr;
  std::vector<std::string> unreached = {};  // parameters that no loss reaches (check::CheckReport): left as they are
  std::filesystem::path from = {};          // the checkpoint to go on from; empty: from the beginning
  std::vector<std::string> allowed = {};    // recipe keys in which that may be of another run
  std::shared_ptr<objective::ModelPair> pair = {};  // of one session at a time; null: built from the settings
};

struct StepResult {
  int64_t step = 0, total_steps = 0;  // steps done
  double seconds = 0;                 // of this update, waiting for data and other ranks included
  double tokens_per_second = 0;       // tokens that went through the student, on all ranks
  UpdateResult update;
};

class Session {
 public:
  // Reads models, data and checkpoint; everything that can be refused is refused here, on all ranks.
  explicit Session(const SessionRequest& request);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  int64_t steps_done() const { return run().step; }
  int64_t total_steps() const;
  bool has_validation() const;

  // Gets the batches of the next update ready on all ranks. `votes`: numbers of the driver's own, summed over the ranks
  // by the same exchange: what it would do before that update, or instead of it.
  std::vector<int64_t> meet(std::vector<int64_t> votes = {});
  // One update; meets first where the driver has not.
  StepResult step();
  // The training forward on data.validation, as training is after the steps that are done.
  evaluate::Evaluation evaluate(const std::function<void(int64_t, int64_t)>& tick = {});

  // The student as a Hugging Face or PEFT folder. Like evaluate() with the averaged weights, where optim.ema keeps
  // some.
  void save_model(const std::filesystem::path& folder);
  // FOLDER/step-N, whole and on disk; nobody else writes into FOLDER.
  std::filesystem::path save_checkpoint(const std::filesystem::path& folder);
  // For a saver of the driver's: this rank's share of such a checkpoint.
  checkpoint::SaveRequest checkpoint() const;
  // Goes to where a checkpoint of this run was saved.
  void restore(const std::filesystem::path& checkpoint);

  // Of the device's memory, beside all tensors: what its CUDA graphs hold.
  int64_t graph_bytes() const;

  const objective::Distillation& objective() const;
  const models::BuiltModel& student() const { return objective().student(); }
  optim::Optimizer& optimizer();
  const RunState& run() const;
  RunRecord& record();  // of the driver, carried by checkpoints

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Another for every run; the same on all ranks.
std::string fresh_run_id(parallel::Communicator& ranks);

}  // namespace limbeck::session
