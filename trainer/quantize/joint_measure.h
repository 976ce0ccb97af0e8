// How much a model in a mix of formats differs from the same one in floats, measured on rows of data: the KL divergence
// of what both predict, with an interval over the rows, and both perplexities.
#pragma once
#include <cstdint>
#include <vector>

#include "modules/models/weights/load_model.h"
#include "trainer/data/data_source.h"

namespace limbeck::quantize {

// Sums over the targets of a row, in nats.
struct RowDivergence {
  int64_t targets = 0;
  double kl = 0, float_loss = 0, loss = 0;
};

// Both must speak of the same ids. Probabilities are float64.
RowDivergence divergence_on(const models::BuiltModel& floats, const models::BuiltModel& mix, const data::Batch& row);

struct JointMeasure {
  int64_t rows = 0, targets = 0;
  double kl = 0, kl_low = 0, kl_high = 0;  // a target; the middle 95 % of rows drawn again, with replacement
  double float_perplexity = 0, perplexity = 0;
};
// KL a target; 0 without any.
double mean_divergence(const std::vector<RowDivergence>& rows);
JointMeasure joint_measure(const std::vector<RowDivergence>& rows);

}  // namespace limbeck::quantize
