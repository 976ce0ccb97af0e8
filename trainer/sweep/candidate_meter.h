// The sweep itself: every candidate alone in a model that is otherwise in floats, on every batch, stage by stage. A
// candidate costs the modules of its stage behind it and the stages behind that, not a whole forward; one that
// overflows or fails is written down with its reason, and the others go on.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/data/data_request.h"
#include "trainer/sweep/batch_states.h"
#include "trainer/sweep/candidate.h"
#include "trainer/sweep/converted_modules.h"
#include "trainer/sweep/row_measure.h"
#include "trainer/sweep/stage_replay.h"
#include "trainer/sweep/sweep_file.h"
#include "trainer/sweep/work_time.h"

namespace limbeck::sweep {

// The batches of a candidate or a whole model: its rows, or why there are none.
BatchOutcome whole_outcome(const SweepFile& file, const std::string& key, data::BatchSpan batches);

class CandidateMeter {
 public:
  // All must live on. Candidates are measured on the batches `choosing`.
  CandidateMeter(const models::BuiltModel& floats, BatchStates& states, SweepFile& file, data::BatchSpan choosing);

  // Of the floats on all batches, under this key of the file; what candidates are held against.
  static constexpr const char* kFloats = "float32";
  void measure_floats();
  // What hears of it: after each batch of a candidate, and when all of one is there.
  struct Listener {
    std::function<void()> batch = {};
    std::function<void(const Candidate&)> done = {};
  };
  void measure(const std::vector<Candidate>& candidates, const Listener& listener);
  // What measure() took.
  WorkTime measuring() const { return measuring_; }
  // What a forward of these batches takes, from the tokens to how good the model is: one candidate without this class.
  // Those that candidates are measured on are timed between the candidates, so that both meet the same machine.
  WorkTime full_evaluation(data::BatchSpan batches) const;
  // Another model of the same structure on these batches, under its own key.
  void measure_model(const std::string& key, const models::BuiltModel& model, data::BatchSpan batches);

 private:
  struct Work;  // on the candidates of a stage
  void measure_stage(size_t stage, std::vector<Work>& works, const Listener& listener);
  void measure_batch(size_t stage, int64_t index, std::vector<Work>& works, const Listener& listener);
  BatchOutcome outcome_of(Work& work, const at::Tensor& x, const models::ModelInput& input,
                          const BatchBaseline& baseline);
  void measure_costs(size_t stage, std::vector<Work>& works, const data::Batch& batch, const at::Tensor& x,
                     const models::ModelInput& input);
  Cost cost_of(Work& work, const at::Tensor& x, const models::ModelInput& input);
  bool is_done(const Candidate& candidate) const;
  void time_full_evaluation(int64_t index);
  // Kept over all stages, as far as the budget of the states goes.
  std::shared_ptr<BatchBaseline> baseline_of(int64_t index, const data::Batch& batch, const models::ModelInput& input);

  const models::BuiltModel& floats_;
  BatchStates& states_;
  SweepFile& file_;
  const data::BatchSpan choosing_;
  StageReplay replay_;
  std::vector<std::shared_ptr<BatchBaseline>> baselines_;  // by batch; null: not kept
  std::vector<std::optional<WorkTime>> full_;              // by batch; none: not yet
  WorkTime measuring_;
};

}  // namespace limbeck::sweep
