// Repairs a mix by what is measured: predicted losses add up, real ones need not. One item takes another format, or two
// do, within the budget; what promises most is tried first, and kept where the divergence falls on the rows that are
// measured by more than drawing them again explains, until nothing helps or so many tries are used up.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "trainer/quantize/budgeted_policy.h"
#include "trainer/quantize/joint_measure.h"

namespace limbeck::quantize {

struct ExchangeTry {
  std::string what;              // "layers.0.mlp.down_proj int8 -> int4, layers.3.mlp.down_proj int4 -> int8"
  double predicted = 0, kl = 0;  // the change of the predicted loss; what was measured
  PairedChange change = {};      // of what was measured, from the mix before it
  bool kept = false;
};

struct Exchanged {
  BudgetedMix mix;
  double kl_before = 0, kl_after = 0;
  int64_t rows = 0;  // that judged
  std::vector<ExchangeTry> tries;
};

// Always of the same rows.
using MeasureMix = std::function<std::vector<RowDivergence>(const Mix&)>;
Exchanged exchange(const FormatTable& table, const Costs& costs, const RowScore& scores, const BudgetedMix& first,
                   int64_t tries, const MeasureMix& measure);

}  // namespace limbeck::quantize
