// Repairs a mix by what is measured: predicted losses add up, real ones need not. One item takes another format, or two
// do, within the budget; what promises most is tried first, and kept where the measured divergence falls, until nothing
// helps or so many tries are used up.
#pragma once
#include <functional>
#include <set>
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

// The mix as an index into the table's formats for each module: "0 2 2 1".
std::string spelled(const FormatTable& table, const Mix& mix);

// A model of float32 weights whose modules are what a mix stores: to be measured without being written.
class MixedModel {
 public:
  // `model`: another copy of the one that was scored; what is no candidate is rounded to `floats`.
  MixedModel(models::BuiltModel model, const ScoreMeter& meter, const FormatTable& table, at::ScalarType floats);
  const models::BuiltModel& in(const Mix& mix);

 private:
  models::BuiltModel model_;
  const ScoreMeter& meter_;
  const FormatTable& table_;
  std::vector<std::shared_ptr<precision::ContractModule>> modules_;
  Mix now_;
};

}  // namespace limbeck::quantize
