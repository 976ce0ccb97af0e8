#include "trainer/objective/forward_pass.h"

#include "modules/errors.h"
#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"

namespace limbeck::objective {

models::ModelInput model_input(const data::TokenStream& stream, models::Taps* taps) {
  models::ModelInput input;
  input.ids = stream.ids;
  input.attention_mask = stream.attention_mask;
  input.document_ids = stream.document_ids;
  input.runs = data::room_for_runs(stream);
  input.taps = taps;
  return input;
}

at::Tensor valid_tokens(const data::TokenStream& stream) {
  if (stream.attention_mask) return stream.attention_mask->ne(0);
  if (stream.document_ids) return stream.document_ids->ne(0);
  return at::ones(stream.ids.sizes(), stream.ids.options().dtype(at::kBool));
}

at::Tensor predicted_labels(const data::TokenStream& stream) {
  const int64_t length = stream.ids.size(1);
  if (!stream.labels.defined()) return at::full({stream.ids.numel()}, models::kIgnoredLabel, stream.ids.options());
  if (stream.masked) return stream.labels.flatten();
  return at::constant_pad_nd(stream.labels.narrow(1, 1, length - 1), {0, 1}, models::kIgnoredLabel).flatten();
}

TokenAlignment::TokenAlignment(const data::Batch& batch, bool interpolate) {
  if (!interpolate) {
    if (!batch.teacher_position.defined()) {
      throw InputDataError(
          "the batch has two token streams and no positions that join them: prepare the data again with both "
          "tokenizers, or set objective.alignment = interpolate");
    }
    lower_ = batch.teacher_position.clamp_min(0);
    found_ = batch.teacher_position.ge(0);
    return;
  }
  if (batch.student.document_ids || batch.teacher->document_ids) {
    throw UsageError(
        "objective.alignment = interpolate stretches one row over another, but packed rows hold several documents: set "
        "objective.alignment = offsets, or pad the rows instead of packing them");
  }
  const at::Tensor valid = valid_tokens(batch.student);
  const auto last = [](const at::Tensor& mask) { return (mask.sum(1, /*keepdim=*/true) - 1).clamp_min(1); };
  const at::Tensor student_last = last(valid), teacher_last = last(valid_tokens(*batch.teacher));
  const at::Tensor step = at::arange(batch.student.ids.size(1), batch.student.ids.options()).unsqueeze(0);
  const at::Tensor place = at::minimum(step, student_last) * teacher_last;
  lower_ = place.div(student_last, "floor");
  upper_ = at::minimum(lower_ + 1, teacher_last).clamp_max(batch.teacher->ids.size(1) - 1);
  upper_share_ = at::true_divide(place - lower_ * student_last, student_last).unsqueeze(-1);
  lower_ = lower_.clamp_max(batch.teacher->ids.size(1) - 1);
  found_ = valid;
}

at::Tensor TokenAlignment::rows(const at::Tensor& teacher_btd, const at::Tensor& position) const {
  const int64_t batch = teacher_btd.size(0), length = teacher_btd.size(1);
  const at::Tensor first = at::arange(0, batch * length, length, position.options()).unsqueeze(1);
  return teacher_btd.flatten(0, 1).index_select(0, (position + first).flatten()).unflatten(0, position.sizes());
}

at::Tensor TokenAlignment::operator()(const at::Tensor& teacher_btd, const std::string& place) const {
  if (!lower_.defined()) return teacher_btd;
  const at::Tensor lower = rows(teacher_btd, lower_);
  if (!upper_.defined()) return lower;
  const at::ScalarType own = teacher_btd.scalar_type();
  const at::Tensor from = precision::cast(lower, own, at::kFloat, place);
  const at::Tensor to = precision::cast(rows(teacher_btd, upper_), own, at::kFloat, place);
  return precision::cast(from + (to - from) * upper_share_, at::kFloat, own, place);
}

at::Tensor ForwardPass::weights(const at::Tensor& mask_n, double value) const {
  return at::zeros(mask_n.sizes(), mask_n.options().dtype(wide)).masked_fill(mask_n, value);
}

at::Tensor ForwardPass::shares_of_targets(const at::Tensor& mask_n, double value) const {
  return mask_n.mul(number([value](const Progress& p, const data::Batch& b) { return value / targets_of(p, b); }));
}

at::Tensor ForwardPass::shares_of_sequences(const at::Tensor& mask_n, double value) const {
  return mask_n.mul(number([value](const Progress& p, const data::Batch& b) { return value / sequences_of(p, b); }));
}

at::Tensor ForwardPass::number(const StepNumbers::Formula& formula, at::ScalarType type) const {
  const auto options = at::TensorOptions().dtype(type).device(batch->student.ids.device());
  if (progress.numbers != nullptr) return progress.numbers->next(formula, options, progress, *batch);
  return at::full({}, formula(progress, *batch), options);
}

at::Tensor ForwardPass::number(const StepNumbers::Formula& formula) const { return number(formula, wide); }

at::Tensor ForwardPass::sequences() const { return number(sequences_of); }

void count_tokens(ForwardPass& pass) {
  const data::TokenStream& stream = pass.batch->student;
  pass.meta = stream.ids.is_meta();
  pass.labels_n = predicted_labels(stream);
  pass.target_n = pass.labels_n.ne(models::kIgnoredLabel);
  const at::Tensor& found = pass.align.found_bt();
  pass.compared_n = found.defined() ? pass.target_n.bitwise_and(found.flatten()) : pass.target_n;
  pass.targets = pass.number(targets_of);
  if (pass.causal) {
    pass.token_weight_n = pass.shares_of_targets(pass.compared_n, 1.0);
    return;
  }
  // Encoders: the mean over the tokens of each sequence, then over sequences.
  at::Tensor valid = valid_tokens(stream);
  if (found.defined()) valid = valid.bitwise_and(found);
  const at::Tensor share = pass.shares_of_sequences(valid, 1.0);
  pass.token_weight_n = (share / valid.sum(1, /*keepdim=*/true).clamp_min(1)).flatten();
}

void TermSum::add_loss(const at::Tensor& weighted) {
  terms_.loss = terms_.loss.defined() ? terms_.loss + weighted : weighted;
}

void TermSum::log(const std::string& name, const at::Tensor& value, double weight) {
  terms_.terms.push_back({name, value.detach(), weight});
}

void TermSum::add(const std::string& name, const at::Tensor& value, double weight) {
  add_loss(value * weight);
  log(name, value, weight);
}

Terms TermSum::finish(int64_t targets, const ForwardPass& pass) && {
  if (!terms_.loss.defined()) {
    // Every weight is zero at this progress: a loss that asks for nothing, differentiable all the same.
    terms_.loss =
        precision::cast(pass.student.last, pass.student.last.scalar_type(), pass.wide, "objective.loss").sum() * 0;
  }
  terms_.targets = targets;
  return std::move(terms_);
}

double weight_in(const ForwardPass& pass, const TermWeights& weights, TermKind kind) {
  const double now = weights.at(kind, pass.progress.fraction());
  return pass.meta && now == 0.0 ? weights.full(kind) : now;
}

}  // namespace limbeck::objective
