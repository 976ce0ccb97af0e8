// A model of float32 weights whose modules are what a mix stores: to be measured without being written.
#pragma once
#include <memory>
#include <vector>

#include "trainer/quantize/format_table.h"
#include "trainer/quantize/score_meter.h"

namespace limbeck::quantize {

// Those of the table, in its order, as a model has them.
std::vector<std::shared_ptr<precision::ContractModule>> modules_of(const models::BuiltModel& model,
                                                                   const FormatTable& table);

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
