// The sweep itself: every candidate alone in a model that is otherwise in floats, on every batch, stage by stage. A
// candidate costs the modules of its stage behind it and the stages behind that, not a whole forward; one that
// overflows or fails is written down with its reason, and the others go on.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/sweep/batch_states.h"
#include "trainer/sweep/candidate.h"
#include "trainer/sweep/converted_modules.h"
#include "trainer/sweep/stage_replay.h"
#include "trainer/sweep/sweep_file.h"

namespace limbeck::sweep {

// All batches of a candidate or a whole model: its rows, or why there are none.
BatchOutcome whole_outcome(const SweepFile& file, const std::string& key, int64_t batches);

class CandidateMeter {
 public:
  // All must live on.
  CandidateMeter(const models::BuiltModel& floats, BatchStates& states, SweepFile& file);

  // Of the floats, under this key of the file; what candidates are held against.
  static constexpr const char* kFloats = "float32";
  Rows measure_floats();
  // A forward of all batches, from the tokens to how good the model is: what one candidate costs without this class.
  double seconds_of_full_evaluation();

  // What hears of it: after each batch of a candidate, and when all of one is there.
  struct Listener {
    std::function<void()> batch = {};
    std::function<void(const Candidate&)> done = {};
  };
  void measure(const std::vector<Candidate>& candidates, const Listener& listener);
  // Another model of the same structure on the same batches, under its own key.
  void measure_model(const std::string& key, const models::BuiltModel& model);

 private:
  struct Work;  // on the candidates of a stage
  void measure_stage(size_t stage, std::vector<Work>& works, const Listener& listener);
  void measure_batch(size_t stage, int64_t index, std::vector<Work>& works, const Listener& listener);
  BatchOutcome outcome_of(Work& work, const at::Tensor& x, const models::ModelInput& input,
                          const BatchBaseline& baseline);
  Cost cost_of(Work& work, const at::Tensor& x, const models::ModelInput& input);
  bool is_done(const Candidate& candidate) const;

  const models::BuiltModel& floats_;
  BatchStates& states_;
  SweepFile& file_;
  StageReplay replay_;
};

}  // namespace limbeck::sweep
