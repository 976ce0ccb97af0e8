// All that a resumed run needs to go on with the same bits: the tensors of student, projectors and optimizer, and the
// numbers beside them. What follows from the recipe and the step (schedule, order of the data, random numbers) is
// computed and never saved.
#pragma once
#include <map>
#include <string>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/save_request.h"
#include "trainer/evaluate/evaluator.h"
#include "trainer/objective/distillation.h"
#include "trainer/optim/optimizer.h"

namespace limbeck::loop {

// The run as it is at a boundary between updates.
struct RunState {
  std::string run_id;
  int64_t step = 0;  // updates done
  double seconds = 0;
  int64_t tokens = 0;
  bool evaluated = false;
  evaluate::Evaluation last, best;
  int64_t last_step = 0, best_step = 0;  // that they are of
  int64_t peak_bytes = 0;
  // What must be equal for the same bits, and what explains why they are not: recipe keys, digests, versions.
  std::map<std::string, std::string> recipe, data, build;
};

// This rank's share of a checkpoint.
checkpoint::SaveRequest save_request(const RunState& run, const objective::Distillation& objective,
                                     const optim::Optimizer& optimizer, bool first_rank);

// Only the numbers: to be looked at before any tensor is read. WeightsError when the file is of another kind.
RunState read_run_state(const checkpoint::Checkpoint& from);
// Fills every tensor of student, projectors and optimizer; publish() is left to the caller. WeightsError names what is
// missing, extra or of another shape.
void restore(const checkpoint::Checkpoint& from, objective::Distillation& objective, optim::Optimizer& optimizer);

}  // namespace limbeck::loop
