// How far the predictions of a float32 model move when one module alone is what a format stores: the KL divergence of
// the whole model from the floats, row by row. It sees what a gradient cannot, and costs a forward a module and format.
#pragma once
#include <memory>
#include <vector>

#include "trainer/quantize/joint_measure.h"
#include "trainer/quantize/score_meter.h"

namespace limbeck::quantize {

class AloneMeter {
 public:
  // `model`: another copy of the one that was scored. `meter` and `table` must live on.
  AloneMeter(models::BuiltModel model, const ScoreMeter& meter, const FormatTable& table);

  // Of a module by its place in the table: by format, in nats over all targets of the row. NumericError where it is
  // not finite.
  std::vector<double> measure(size_t module, const FloatRow& row) const;

 private:
  models::BuiltModel model_;
  const ScoreMeter& meter_;
  const FormatTable& table_;
  std::vector<std::shared_ptr<precision::ContractModule>> modules_;
};

// What the loss of a module in a format is predicted by: the error of its outputs weighted with squared gradients, the
// KL with that module alone in the format, or the mean of both, the errors scaled to add up to as much as all KLs.
enum class PredictedBy { kError, kKl, kBoth };

// With `losses` by it. std::logic_error where divergences are asked for that nobody measured.
RowScore predicted(RowScore scores, PredictedBy by);

}  // namespace limbeck::quantize
