// Repairs a mix by what is measured: predicted losses add up, real ones need not. One item takes another format, or two
// do, within the budget; what promises most is tried first, and kept where the measured divergence falls, until nothing
// helps or so many tries are used up.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "trainer/quantize/budgeted_policy.h"

namespace limbeck::quantize {

struct ExchangeTry {
  std::string what;              // "layers.0.mlp.down_proj int8 -> int4, layers.3.mlp.down_proj int4 -> int8"
  double predicted = 0, kl = 0;  // the change of the predicted loss; what was measured
  bool kept = false;
};

struct Exchanged {
  BudgetedMix mix;
  double kl_before = 0, kl_after = 0;
  std::vector<ExchangeTry> tries;
};

using MeasureMix = std::function<double(const Mix&)>;
Exchanged exchange(const FormatTable& table, const RowScore& scores, const BudgetedMix& first, int64_t tries,
                   const MeasureMix& measure);

}  // namespace limbeck::quantize
