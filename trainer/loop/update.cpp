#include "trainer/loop/update.h"

#include <ATen/ops/full_like.h>

namespace limbeck::loop {

namespace {

void add_terms(const objective::Terms& terms, UpdateResult& result) {
  if (terms.loss.is_meta()) return;
  result.loss += terms.loss.item<double>();
  for (const objective::Term& term : terms.terms) {
    const double value = term.value.item<double>();
    bool known = false;
    for (auto& [name, sum] : result.terms) {
      if (name != term.name) continue;
      sum += value;
      known = true;
    }
    if (!known) result.terms.emplace_back(term.name, value);
  }
}

}  // namespace

objective::Progress update_progress(const std::vector<data::Batch>& batches, int64_t step, int64_t total_steps,
                                    double loss_scale) {
  objective::Progress progress;
  progress.step = step;
  progress.total_steps = total_steps;
  progress.loss_scale = loss_scale;
  for (const data::Batch& batch : batches) {
    progress.update_sequences += batch.student.ids.size(0);
    // Every target counts on meta, where labels have no values.
    progress.update_targets += batch.student.ids.is_meta() ? batch.student.ids.size(0) * (batch.student.ids.size(1) - 1)
                                                           : data::target_count(batch.student);
  }
  return progress;
}

UpdateResult run_update(objective::Distillation& objective, optim::Optimizer& optimizer,
                        const std::vector<data::Batch>& batches, int64_t step, int64_t total_steps) {
  const double scale = optimizer.loss_scale();
  const objective::Progress progress = update_progress(batches, step, total_steps, scale);
  UpdateResult result;
  result.targets = progress.update_targets;
  for (const data::Batch& batch : batches) {
    const objective::Terms terms = objective.forward(batch, progress);
    // A batch without a target (all labels masked) may have no path to a weight: its share is nothing.
    if (terms.loss.requires_grad()) terms.loss.backward(at::full_like(terms.loss, scale));
    add_terms(terms, result);
    optimizer.accumulate(static_cast<int64_t>(batches.size()));
  }
  result.step = optimizer.step(step);
  if (!result.step.skipped) objective.after_update(progress);
  return result;
}

}  // namespace limbeck::loop
