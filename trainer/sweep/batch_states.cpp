#include "trainer/sweep/batch_states.h"

#include <optional>

#include "trainer/objective/model_pair.h"
#include "trainer/sweep/candidate.h"

namespace limbeck::sweep {

at::Tensor through_stage(const models::BuiltModel& model, size_t stage, const at::Tensor& x,
                         const models::ModelInput& input, bool all_tokens) {
  if (stage == 0) return model.model->embedded(input);
  const size_t layers = model.model->layers().size();
  if (stage > layers) return model.model->last_of(x);
  const bool reads_first = !all_tokens && stage == layers && objective::is_classifier(model);
  return model.model->through_layer(stage - 1, x, input, reads_first ? std::optional<int64_t>(1) : std::nullopt);
}

at::Tensor from_stage(const models::BuiltModel& model, size_t stage, at::Tensor x, const models::ModelInput& input) {
  for (; stage < stages_of(*model.model); ++stage) x = through_stage(model, stage, x, input);
  return x;
}

BatchStates::BatchStates(const models::BuiltModel& model, SweepBatches batches, int64_t bytes)
    : model_(model),
      batches_(std::move(batches)),
      bytes_left_(bytes - bytes / 2),
      others_left_(bytes / 2),
      kept_(static_cast<size_t>(batches_.count)) {}

data::Batch BatchStates::batch(int64_t index) const {
  return data::place(batches_.batch(index), model_.policy->device());
}

bool BatchStates::take(int64_t bytes) {
  if (bytes > others_left_) return false;
  others_left_ -= bytes;
  return true;
}

// What takes the place of what was kept there costs nothing more.
void BatchStates::keep(at::Tensor& place, const at::Tensor& x) {
  const int64_t more = static_cast<int64_t>(x.nbytes()) - (place.defined() ? static_cast<int64_t>(place.nbytes()) : 0);
  if (more > bytes_left_) return;
  bytes_left_ -= more;
  place = x;
}

void BatchStates::keep_entering(size_t stage, Kept& kept, const at::Tensor& x) {
  keep(kept.x, x);
  if (kept.x.is_same(x)) kept.stage = stage;
}

at::Tensor BatchStates::entering(size_t stage, int64_t index, const models::ModelInput& input) {
  Kept& kept = kept_.at(static_cast<size_t>(index));
  at::Tensor x = kept.stage <= stage ? kept.x : at::Tensor();
  for (size_t at = x.defined() ? kept.stage : 0; at < stage; ++at) x = through_stage(model_, at, x, input);
  if (stage > 0) keep_entering(stage, kept, x);
  return x;
}

void BatchStates::leaving(size_t stage, int64_t index, const at::Tensor& y) {
  if (stage + 1 < stages_of(*model_.model)) keep_entering(stage + 1, kept_.at(static_cast<size_t>(index)), y);
}

at::Tensor BatchStates::last(int64_t index, const models::ModelInput& input) {
  Kept& kept = kept_.at(static_cast<size_t>(index));
  if (kept.last.defined()) return kept.last;
  const at::Tensor last =
      kept.x.defined() ? from_stage(model_, kept.stage, kept.x, input) : from_stage(model_, 0, {}, input);
  keep(kept.last, last);
  return last;
}

}  // namespace limbeck::sweep
