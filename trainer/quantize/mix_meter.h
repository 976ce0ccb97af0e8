// How far mixes of formats are from the floats on rows of data: each row of each mix is measured once and kept in the
// score file, so that whoever asks again, in this run or in one that goes on after it, is told the same bits.
#pragma once
#include <functional>
#include <vector>

#include "trainer/quantize/joint_measure.h"
#include "trainer/quantize/mixed_model.h"
#include "trainer/quantize/score_file.h"

namespace limbeck::quantize {

// So many rows from one on.
struct RowRange {
  int64_t begin = 0, count = 0;
};

class MixMeter {
 public:
  // All but `mixed` must live on.
  MixMeter(const models::BuiltModel& floats, MixedModel mixed, const FormatTable& table, ScoreFile& file,
           std::function<data::Batch(int64_t)> row);
  std::vector<RowDivergence> measure(const Mix& mix, RowRange rows);

 private:
  const models::BuiltModel& floats_;
  MixedModel mixed_;
  const FormatTable& table_;
  ScoreFile& file_;
  std::function<data::Batch(int64_t)> row_;
};

}  // namespace limbeck::quantize
