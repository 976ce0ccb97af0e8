#include "trainer/quantize/mix_meter.h"

namespace limbeck::quantize {

MixMeter::MixMeter(const models::BuiltModel& floats, MixedModel mixed, const FormatTable& table, ScoreFile& file,
                   std::function<data::Batch(int64_t)> row)
    : floats_(floats), mixed_(std::move(mixed)), table_(table), file_(file), row_(std::move(row)) {}

std::vector<RowDivergence> MixMeter::measure(const Mix& mix, RowRange rows) {
  const std::string name = spelled(table_, mix);
  std::vector<RowDivergence> found;
  for (int64_t row = rows.begin; row < rows.begin + rows.count; ++row) {
    if (file_.divergence(name, row) == nullptr)
      file_.add_divergence(name, row, divergence_on(floats_, mixed_.in(mix), row_(row)));
    found.push_back(*file_.divergence(name, row));
  }
  return found;
}

}  // namespace limbeck::quantize
