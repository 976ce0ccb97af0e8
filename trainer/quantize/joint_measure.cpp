#include "trainer/quantize/joint_measure.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "kernels/prediction_distance/prediction_distance.h"
#include "modules/models/network/token_loss.h"
#include "modules/precision/casts.h"
#include "trainer/objective/forward_pass.h"
#include "trainer/quantize/row_draws.h"

namespace limbeck::quantize {

namespace {

double total_of(const at::Tensor& values_n) {
  const at::Tensor here = precision::move(values_n.contiguous(), c10::kCPU);
  const double* value = here.const_data_ptr<double>();
  double sum = 0;
  for (int64_t i = 0; i < here.numel(); ++i) sum += value[i];
  return sum;
}

// Of a row's positions, so many at a time: a vocabulary of 150,000 would take gigabytes for all of them.
constexpr int64_t kLogitsAtATime = int64_t{1} << 22;

// What the head gets [positions, D].
at::Tensor hidden_at(const models::BuiltModel& built, const data::TokenStream& stream, const at::Tensor& positions) {
  return built.model->encode(objective::model_input(stream, nullptr)).last.flatten(0, 1).index_select(0, positions);
}

// MKL multiplies 5 to 11 rows of float32 in another order on another number of threads: no product is of so few.
constexpr int64_t kLeastRows = 16;

at::Tensor wide(const at::Tensor& x, const models::BuiltModel& built) {
  return precision::cast(x, x.scalar_type(), at::kDouble, built.model->path() + " (divergence)");
}

// The sum of -log p of what comes next, of its logits and all logits' log_sums.
double total_loss(const at::Tensor& log_sums, const at::Tensor& logits, const at::Tensor& target,
                  const models::BuiltModel& built) {
  return total_of(log_sums - wide(logits.gather(1, target).squeeze(1), built));
}

// KL a target of rows drawn again.
std::pair<double, double> drawn_again(const std::vector<RowDivergence>& rows) {
  const auto kl_of = [&](std::span<const uint32_t> drawn) -> std::optional<double> {
    double sum = 0, count = 0;
    for (const uint32_t i : drawn) {
      sum += rows[i].kl;
      count += static_cast<double>(rows[i].targets);
    }
    return count > 0 ? std::optional(sum / count) : std::nullopt;
  };
  const Interval found = RowDraws(rows.size()).interval(kl_of);
  return {found.low, found.high};
}

}  // namespace

at::Tensor logits_at(const models::BuiltModel& built, const at::Tensor& hidden) {
  const int64_t count = hidden.size(0), missing = std::max<int64_t>(0, kLeastRows - count);
  const at::Tensor rows = missing > 0 ? at::constant_pad_nd(hidden, {0, 0, 0, missing}) : hidden;
  return built.model->head(rows.unsqueeze(0)).squeeze(0).narrow(0, 0, count);
}

Distance distance_of(const models::BuiltModel& model) {
  const bool encoder = model.config.architecture.kind == models::ModelKind::kEncoder;
  return encoder ? Distance::kPooledStates : Distance::kPredictions;
}

const char* heading(Distance distance) {
  return distance == Distance::kPredictions ? "KL to floats" : "1 - cosine to floats";
}

at::Tensor pooled_directions(const models::BuiltModel& model, const data::TokenStream& stream) {
  const at::Tensor last = model.model->encode(objective::model_input(stream, nullptr)).last;
  const at::Tensor pooled = models::mean_pool(last, objective::valid_tokens(stream));
  return pooled / pooled.norm(2, -1, /*keepdim=*/true);
}

FloatRow::FloatRow(const models::BuiltModel& floats, const data::Batch& row)
    : distance_(distance_of(floats)), floats_(floats) {
  const at::NoGradGuard no_gradient;
  stream_ = data::place(row, floats.policy->device()).student;
  if (distance_ == Distance::kPooledStates) {
    directions_ = wide(pooled_directions(floats, stream_), floats);
    return;
  }
  const at::Tensor labels = objective::predicted_labels(stream_);
  positions_ = labels.ne(models::kIgnoredLabel).nonzero().flatten();
  labels_ = labels.index_select(0, positions_).unsqueeze(1);
  at_a_time_ = std::max<int64_t>(1, kLogitsAtATime / floats.config.architecture.vocabulary);
  if (targets() == 0) return;
  hidden_ = hidden_at(floats, stream_, positions_);
  if (targets() <= at_a_time_) whole_ = predictions(0, targets());
}

FloatRow::Predictions FloatRow::predictions(int64_t begin, int64_t count) const {
  const at::Tensor logits = logits_at(floats_, hidden_.narrow(0, begin, count));
  return {logits, kernels::log_sums(logits)};
}

RowDivergence FloatRow::turned(const models::BuiltModel& mix) const {
  RowDivergence row;
  row.targets = targets();
  const at::Tensor of_mix = wide(pooled_directions(mix, stream_), mix);
  // Of directions 1 - cosine is half the square of their distance, without the cancellation of 1 - 0.9999999.
  row.kl = total_of((directions_ - of_mix).square().sum(-1)) / 2;
  return row;
}

RowDivergence FloatRow::divergence(const models::BuiltModel& mix) const {
  const at::NoGradGuard no_gradient;
  if (distance_ == Distance::kPooledStates) return turned(mix);
  RowDivergence row;
  row.targets = targets();
  if (row.targets == 0) return row;
  const at::Tensor of_mix = hidden_at(mix, stream_, positions_);
  for (int64_t begin = 0; begin < row.targets; begin += at_a_time_) {
    const int64_t count = std::min(at_a_time_, row.targets - begin);
    const at::Tensor target = labels_.narrow(0, begin, count);
    const Predictions p = whole_ ? *whole_ : predictions(begin, count);
    const at::Tensor logits = logits_at(mix, of_mix.narrow(0, begin, count));
    const kernels::PredictionDistances moved = kernels::prediction_distances(logits, p.logits, p.log_sums);
    row.kl += total_of(moved.kl);
    row.float_loss += total_loss(p.log_sums, p.logits, target, floats_);
    row.loss += total_loss(moved.log_sums, logits, target, mix);
  }
  return row;
}

RowDivergence divergence_on(const models::BuiltModel& floats, const models::BuiltModel& mix, const data::Batch& row) {
  return FloatRow(floats, row).divergence(mix);
}

double mean_divergence(const std::vector<RowDivergence>& rows) {
  double kl = 0;
  int64_t targets = 0;
  for (const RowDivergence& row : rows) kl += row.kl, targets += row.targets;
  return targets > 0 ? kl / static_cast<double>(targets) : 0;
}

PairedChange paired_change(const std::vector<RowDivergence>& from, const std::vector<RowDivergence>& to) {
  if (from.size() != to.size()) throw std::logic_error("a pair has two rows");
  std::vector<RowDivergence> change = to;
  for (size_t i = 0; i < change.size(); ++i) {
    if (from[i].targets != to[i].targets) throw std::logic_error("the rows of a pair have other targets");
    change[i].kl -= from[i].kl;
  }
  PairedChange found;
  found.kl = mean_divergence(change);
  std::tie(found.low, found.high) = drawn_again(change);
  return found;
}

JointMeasure joint_measure(const std::vector<RowDivergence>& rows, Distance distance) {
  JointMeasure measure;
  measure.distance = distance;
  double float_loss = 0, loss = 0;
  for (const RowDivergence& row : rows) {
    measure.targets += row.targets;
    float_loss += row.float_loss;
    loss += row.loss;
  }
  measure.rows = static_cast<int64_t>(rows.size());
  if (measure.targets == 0) return measure;
  const auto targets = static_cast<double>(measure.targets);
  measure.kl = mean_divergence(rows);
  measure.float_perplexity = std::exp(float_loss / targets);
  measure.perplexity = std::exp(loss / targets);
  std::tie(measure.kl_low, measure.kl_high) = drawn_again(rows);
  return measure;
}

}  // namespace limbeck::quantize
