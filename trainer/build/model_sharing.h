// How the models of a run are divided among its ranks: for the run, and on meta for the plan that `limbeck check`
// makes.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "trainer/objective/distillation.h"
#include "trainer/optim/optimizer.h"
#include "trainer/parallel/parallel_options.h"
#include "trainer/parallel/sharing/unit_weights.h"

namespace limbeck::build {

// Of what trains, less `unreached`; the student fetches its weights from the optimizer's shares from then on.
std::unique_ptr<optim::Optimizer> make_optimizer(const recipe::Settings& settings, objective::Distillation& objective,
                                                 parallel::Communicator& ranks, int64_t own_micro_batches,
                                                 int64_t total_steps, const std::vector<std::string>& unreached = {});

// The weights of a frozen teacher, divided where parallel.zero = 3 says so and fetched layer by layer.
class TeacherShards {
 public:
  TeacherShards(const parallel::ParallelOptions& options, objective::Distillation& objective,
                parallel::Communicator& ranks);

 private:
  parallel::BufferPool pool_;  // before the units
  std::vector<std::unique_ptr<parallel::UnitWeights>> units_;
  parallel::LayerWeights keeper_;
};

// Bytes of tensors that stay on one rank between updates.
struct KeptBytes {
  int64_t teacher = 0, student = 0, gradients = 0;  // gradients: from the first backward to the update
};
KeptBytes kept_bytes(const parallel::ParallelOptions& options, const objective::Distillation& objective, int ranks);

}  // namespace limbeck::build
