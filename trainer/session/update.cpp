#include "trainer/session/update.h"

#include "trainer/metrics/phase_clock.h"
#include "trainer/parallel/ranks/together.h"
#include "trainer/parallel/sums/named_sums.h"
#include "trainer/session/step_graphs.h"

namespace limbeck::session {

namespace {

constexpr const char* kLoss = "loss";

// What is logged of the micro-batches, on the device until the update has it all.
struct Logged {
  std::vector<std::string> names;
  std::vector<at::Tensor> values;

  void add(const objective::Terms& terms) {
    if (terms.loss.is_meta()) return;
    names.emplace_back(kLoss);
    values.push_back(terms.loss.detach());
    for (const objective::Term& term : terms.terms) {
      names.push_back(term.name);
      values.push_back(term.value);
    }
  }
};

}  // namespace

objective::Progress update_progress(const std::vector<data::Batch>& batches, int64_t step, int64_t total_steps,
                                    double loss_scale) {
  objective::Progress progress;
  progress.training = true;
  progress.step = step;
  progress.total_steps = total_steps;
  progress.loss_scale = loss_scale;
  for (const data::Batch& batch : batches) {
    progress.update_sequences += batch.student.ids.size(0);
    progress.update_targets += data::target_count(batch.student);
  }
  return progress;
}

UpdateResult run_update(objective::Distillation& objective, optim::Optimizer& optimizer,
                        const std::vector<data::Batch>& batches, const objective::Progress& progress,
                        parallel::Communicator& ranks, StepGraphs* graphs) {
  Logged logged;
  for (const data::Batch& batch : batches) {
    const objective::Terms terms =
        graphs != nullptr ? graphs->run(batch, progress) : forward_and_backward(objective, batch, progress);
    const metrics::InPhase phase("backward");
    logged.add(terms);
    optimizer.accumulate(static_cast<int64_t>(batches.size()));
  }
  UpdateResult result;
  result.targets = progress.update_targets;
  const metrics::InPhase phase("update");
  parallel::alike(ranks, [&] { result.step = optimizer.step(progress.step, logged.values); });
  if (!result.step.skipped) {
    if (objective.follows_student()) optimizer.shares().gather_all();
    objective.after_update(progress);
  }
  // Every sum is exact, so neither the number of ranks nor their order shows in what is logged.
  parallel::NamedSums sums;
  for (size_t i = 0; i < result.step.beside.size(); ++i) sums.add(logged.names[i], result.step.beside[i]);
  sums.all_reduce(ranks);
  for (const std::string& name : sums.names()) {
    if (name != kLoss) result.terms.emplace_back(name, sums.value(name));
  }
  result.loss = sums.value(kLoss);
  return result;
}

}  // namespace limbeck::session
