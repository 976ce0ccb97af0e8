#include "trainer/sweep/row_measure.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/log_softmax.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/prediction_distance/prediction_distance.h"
#include "modules/errors.h"
#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"
#include "trainer/objective/forward_pass.h"
#include "trainer/quantize/joint_measure.h"

namespace limbeck::sweep {

namespace {

// Logits of a vocabulary of 150,000 would take gigabytes for all positions of a batch.
constexpr int64_t kValuesAtATime = int64_t{1} << 22, kValuesKept = int64_t{1} << 24;

at::Tensor widened(const at::Tensor& x, const models::BuiltModel& built) {
  return precision::cast(x, x.scalar_type(), at::kDouble, built.model->path() + " (sweep)");
}

template <class Value>
std::vector<Value> values_of(const at::Tensor& x) {
  const at::Tensor here = precision::move(x.contiguous(), c10::kCPU);
  const Value* begin = here.const_data_ptr<Value>();
  return {begin, begin + here.numel()};
}

at::Tensor forward_kl(const at::Tensor& log_p, const at::Tensor& log_q) {
  return (log_p.exp() * (log_p - log_q)).sum(-1);
}

}  // namespace

Kind kind_of(const models::BuiltModel& model) {
  if (objective::is_classifier(model)) return Kind::kClassifier;
  const bool encoder = model.config.architecture.kind == models::ModelKind::kEncoder;
  if (!objective::has_language_head(model)) return Kind::kEncoder;
  return encoder ? Kind::kMasked : Kind::kDecoder;
}

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kClassifier:
      return "classifier";
    case Kind::kDecoder:
      return "decoder";
    case Kind::kMasked:
      return "masked";
    case Kind::kEncoder:
      break;
  }
  return "encoder";
}

const char* quality_name(Kind kind) {
  if (kind == Kind::kClassifier) return "accuracy";
  return kind == Kind::kEncoder ? "cosine" : "perplexity";
}

bool RowMeasure::is_finite() const {
  return std::isfinite(right) && std::isfinite(loss) && std::isfinite(kl) && std::isfinite(squares);
}

BatchBaseline::BatchBaseline(const models::BuiltModel& floats, data::Batch of, at::Tensor last)
    : kind_(kind_of(floats)), floats_(floats), batch_(std::move(of)), last_(std::move(last)) {
  const at::NoGradGuard no_gradient;
  const data::Batch& batch = batch_;
  if (kind_ == Kind::kClassifier) {
    if (!batch.classes.defined()) {
      throw InputDataError(
          "the student is a classifier, but the data have no classes: prepare data with labels, or name another "
          "student.model");
    }
    kept_ = widened(floats.model->head(last_), floats);
    log_p_ = at::log_softmax(kept_, -1);
    return;
  }
  if (kind_ == Kind::kEncoder) {
    const at::Tensor pooled = widened(models::mean_pool(last_, objective::valid_tokens(batch.student)), floats);
    kept_ = pooled / pooled.norm(2, -1, /*keepdim=*/true);
    return;
  }
  const at::Tensor labels = objective::predicted_labels(batch.student);
  positions_ = labels.ne(models::kIgnoredLabel).nonzero().flatten();
  labels_ = labels.index_select(0, positions_);
  const int64_t vocabulary = floats.config.architecture.vocabulary, count = positions_.numel();
  at_a_time_ = std::max<int64_t>(1, kValuesAtATime / vocabulary);
  if (count > 0 && count * vocabulary <= kValuesKept) {
    kept_ = logits_of(floats, last_, 0, count);
    log_sums_ = kernels::log_sums(kept_);
  }
}

int64_t BatchBaseline::bytes() const {
  int64_t bytes = 0;
  for (const at::Tensor& one : {kept_, log_sums_}) bytes += one.defined() ? static_cast<int64_t>(one.nbytes()) : 0;
  return bytes;
}

at::Tensor BatchBaseline::logits_of(const models::BuiltModel& model, const at::Tensor& last, int64_t begin,
                                    int64_t count) const {
  return quantize::logits_at(model, last.flatten(0, 1).index_select(0, positions_.narrow(0, begin, count)));
}

at::Tensor BatchBaseline::float_logits(int64_t begin, int64_t count, ConvertedModules* in_place) const {
  if (kept_.defined()) return kept_.narrow(0, begin, count);
  std::optional<ConvertedModules::InPlace> floats_again;
  if (in_place != nullptr) floats_again.emplace(*in_place);
  return logits_of(floats_, last_, begin, count);
}

std::vector<RowMeasure> BatchBaseline::measure_classes(const at::Tensor& logits) const {
  const at::Tensor q = at::log_softmax(logits, -1);
  const at::Tensor& classes = batch_.classes;
  const at::Tensor gold = q.gather(-1, classes.clamp_min(0).unsqueeze(-1)).squeeze(-1);
  const auto kl = values_of<double>(forward_kl(log_p_, q)), loss = values_of<double>(-gold),
             squares = values_of<double>((logits - kept_).square().sum(-1));
  const auto labels = values_of<int64_t>(classes), guesses = values_of<int64_t>(logits.argmax(-1));
  std::vector<RowMeasure> rows(labels.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (labels[i] == models::kIgnoredLabel) continue;
    rows[i] = {1, guesses[i] == labels[i] ? 1.0 : 0.0, loss[i], kl[i], squares[i], logits.size(-1)};
  }
  return rows;
}

std::vector<RowMeasure> BatchBaseline::measure_tokens(const models::BuiltModel& other, const at::Tensor& last,
                                                      ConvertedModules* in_place, bool own) const {
  const int64_t length = batch_.student.ids.size(1), all = positions_.numel();
  std::vector<RowMeasure> rows(static_cast<size_t>(batch_.student.ids.size(0)));
  const auto places = values_of<int64_t>(positions_);
  for (int64_t begin = 0; begin < all; begin += at_a_time_) {
    const int64_t count = std::min(at_a_time_, all - begin);
    const at::Tensor zp = float_logits(begin, count, in_place), zq = own ? zp : logits_of(other, last, begin, count);
    const at::Tensor sums_p = log_sums_.defined() ? log_sums_.narrow(0, begin, count) : kernels::log_sums(zp);
    const kernels::PredictionDistances moved =
        own ? kernels::PredictionDistances{sums_p, {}, {}} : kernels::prediction_distances(zq, zp, sums_p);
    const at::Tensor right = zq.gather(-1, labels_.narrow(0, begin, count).unsqueeze(-1)).squeeze(-1);
    const auto loss = values_of<double>(moved.log_sums - widened(right, other));
    std::vector<double> kl(loss.size()), squares(loss.size());
    if (!own) kl = values_of<double>(moved.kl), squares = values_of<double>(moved.squares);
    for (size_t i = 0; i < loss.size(); ++i) {
      RowMeasure& row = rows[static_cast<size_t>(places[static_cast<size_t>(begin) + i] / length)];
      ++row.targets;
      row.loss += loss[i];
      row.values += zq.size(-1);
      row.kl += kl[i], row.squares += squares[i];
    }
  }
  return rows;
}

std::vector<RowMeasure> BatchBaseline::measure_pooled(const at::Tensor& directions) const {
  // Of directions 1 - cosine is half the square of their distance, without the cancellation of 1 - 0.9999999.
  const auto squares = values_of<double>((directions - kept_).square().sum(-1));
  std::vector<RowMeasure> rows;
  for (const double square : squares) rows.push_back({1, 1 - square / 2, 0, square / 2, square, directions.size(-1)});
  return rows;
}

std::vector<RowMeasure> BatchBaseline::own() const {
  const at::NoGradGuard no_gradient;
  if (kind_ == Kind::kClassifier) return measure_classes(kept_);
  return kind_ == Kind::kEncoder ? measure_pooled(kept_)
                                 : measure_tokens(floats_, last_, /*in_place=*/nullptr, /*own=*/true);
}

std::vector<RowMeasure> BatchBaseline::measure(const models::BuiltModel& other, const at::Tensor& last,
                                               ConvertedModules* in_place) const {
  const at::NoGradGuard no_gradient;
  if (kind_ == Kind::kClassifier) return measure_classes(widened(other.model->head(last), other));
  if (kind_ != Kind::kEncoder) return measure_tokens(other, last, in_place, /*own=*/false);
  const at::Tensor pooled = widened(models::mean_pool(last, objective::valid_tokens(batch_.student)), other);
  return measure_pooled(pooled / pooled.norm(2, -1, /*keepdim=*/true));
}

}  // namespace limbeck::sweep
