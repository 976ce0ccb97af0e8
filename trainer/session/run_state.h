// All that a resumed run needs to go on with the same bits: the tensors of student, projectors and optimizer, and the
// numbers beside them. What follows from the recipe and the step (schedule, order of the data, random numbers) is
// computed and never saved.
#pragma once
#include <string>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/save_request.h"
#include "trainer/evaluate/evaluator.h"
#include "trainer/objective/distillation.h"
#include "trainer/optim/optimizer.h"
#include "trainer/session/run_identity.h"

namespace limbeck::session {

// What who drives a run writes down beside it: nothing of it decides an update. A checkpoint carries it.
struct RunRecord {
  std::string run_id;
  double seconds = 0;
  bool evaluated = false;
  evaluate::Evaluation last, best;
  int64_t last_step = 0, best_step = 0;  // that they are of
  int64_t peak_bytes = 0;
};

// The run as it is at a boundary between updates.
struct RunState {
  int64_t step = 0, tokens = 0;  // updates done, and what went through the student in them
  RunRecord record;
  RunIdentity identity;
};

// This rank's share of a checkpoint.
checkpoint::SaveRequest save_request(const RunState& run, const objective::Distillation& objective,
                                     const optim::Optimizer& optimizer, bool first_rank);

// Only the numbers: to be looked at before any tensor is read. WeightsError when the file is of another kind.
RunState read_run_state(const checkpoint::Checkpoint& from);
// Fills every tensor of student, projectors and optimizer; publish() is left to the caller. WeightsError names what is
// missing, extra or of another shape.
void restore(const checkpoint::Checkpoint& from, objective::Distillation& objective, optim::Optimizer& optimizer);

}  // namespace limbeck::session
