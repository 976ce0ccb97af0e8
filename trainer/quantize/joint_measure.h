// How much a model in a mix of formats differs from the same one in floats, measured on rows of data. Of a decoder of
// language: the KL divergence of what both predict, with an interval over the rows, and both perplexities. Of an
// encoder: how far its pooled states turn.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "modules/models/weights/load_model.h"
#include "trainer/data/data_source.h"

namespace limbeck::quantize {

enum class Distance { kPredictions, kPooledStates };
Distance distance_of(const models::BuiltModel& model);
// "KL to floats", "1 - cosine to floats"
const char* heading(Distance distance);

// The states of each sequence that are no padding, their mean, at length 1: [B, D].
at::Tensor pooled_directions(const models::BuiltModel& model, const data::TokenStream& stream);

// The logits [positions, V] of states [positions, D], in the head's dtype.
at::Tensor logits_at(const models::BuiltModel& built, const at::Tensor& hidden);

// Sums over the targets of a row, in nats. Of pooled states: each sequence is a target, `kl` is 1 - cosine, and there
// are no losses.
struct RowDivergence {
  int64_t targets = 0;
  double kl = 0, float_loss = 0, loss = 0;
};

// What a model in floats makes of a row, to hold other models against. Both must speak of the same ids; probabilities
// are float64.
class FloatRow {
 public:
  // `floats` must live on.
  FloatRow(const models::BuiltModel& floats, const data::Batch& row);
  int64_t targets() const { return distance_ == Distance::kPredictions ? positions_.numel() : directions_.size(0); }
  RowDivergence divergence(const models::BuiltModel& mix) const;

 private:
  struct Predictions {
    at::Tensor logits, log_sums;  // [positions, V] in the head's dtype, float64 [positions]
  };
  Predictions predictions(int64_t begin, int64_t count) const;
  RowDivergence turned(const models::BuiltModel& mix) const;

  const Distance distance_;
  const models::BuiltModel& floats_;
  data::TokenStream stream_;
  at::Tensor positions_, labels_, hidden_;  // of what is predicted
  std::optional<Predictions> whole_;        // where all of them are few enough to be kept
  int64_t at_a_time_ = 1;
  at::Tensor directions_;  // of pooled states
};

RowDivergence divergence_on(const models::BuiltModel& floats, const models::BuiltModel& mix, const data::Batch& row);

struct JointMeasure {
  Distance distance = Distance::kPredictions;
  int64_t rows = 0, targets = 0;
  double kl = 0, kl_low = 0, kl_high = 0;       // a target; the middle 95 % of rows drawn again, with replacement
  double float_perplexity = 0, perplexity = 0;  // of predictions
};
// By how much KL a target changes from one mix to another on the same rows: what rows have in common cancels. Too few
// rows say nothing, whatever their interval.
inline constexpr int64_t kLeastPairedRows = 8;
struct PairedChange {
  double kl = 0, low = 0, high = 0;  // the middle 95 % of rows drawn again, with replacement
};
// std::logic_error where the rows are not the same ones.
PairedChange paired_change(const std::vector<RowDivergence>& from, const std::vector<RowDivergence>& to);

// KL a target; 0 without any.
double mean_divergence(const std::vector<RowDivergence>& rows);
JointMeasure joint_measure(const std::vector<RowDivergence>& rows, Distance distance = Distance::kPredictions);

}  // namespace limbeck::quantize
