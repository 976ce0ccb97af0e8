// One update: forward and backward of each micro-batch, then the optimizer, on all ranks. Training runs it on data;
// `limbeck check` runs the same function on meta.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "trainer/data/batch.h"
#include "trainer/objective/distillation.h"
#include "trainer/optim/optimizer.h"
#include "trainer/parallel/communicator.h"

namespace limbeck::session {

class StepGraphs;

struct UpdateResult {
  double loss = 0;
  std::vector<std::pair<std::string, double>> terms;  // unweighted, by name; sums over the micro-batches of all ranks
  int64_t targets = 0;                                // valid targets of the update
  optim::StepReport step;
};

// Targets and sequences of these micro-batches: known before the first forward, because what every term is divided by
// is their sum over the whole update, other ranks included. Of training, evaluation has its own.
objective::Progress update_progress(const std::vector<data::Batch>& batches, int64_t step, int64_t total_steps,
                                    double loss_scale);

// `batches`: of this rank; `progress`: of the update on all ranks. On meta the numbers of the result stay 0: there are
// none. `graphs`: of the objective; null: nothing is recorded.
UpdateResult run_update(objective::Distillation& objective, optim::Optimizer& optimizer,
                        const std::vector<data::Batch>& batches, const objective::Progress& progress,
                        parallel::Communicator& ranks, StepGraphs* graphs = nullptr);

}  // namespace limbeck::session
