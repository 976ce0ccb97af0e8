// What limbeck quantize does with data: scores of every module and format, kept in a file, the mix that follows from
// them, and what a written folder measures.
#pragma once
#include <memory>
#include <optional>

#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/quantize_curve.h"
#include "trainer/cli/commands/quantize_tables.h"
#include "trainer/cli/console/progress.h"
#include "trainer/data/data_source.h"
#include "trainer/quantize/mix_meter.h"
#include "trainer/quantize/mixed_precision_quantizer.h"
#include "trainer/quantize/rounding_work.h"

namespace limbeck::cli {

// The mix of a policy, as it is shown before anything is written.
struct Decided {
  quantize::Mix mix;
  Reasons reasons = {};
};

void declare_measured(recipe::OptionTable& table);

std::unique_ptr<Progress> progress_of(const Invocation& call, const char* label, const char* unit, int64_t all);
// "OUTPUT.scores.jsonl"
std::filesystem::path beside_output(const recipe::Settings& settings, const char* ending);
std::filesystem::path score_path(const recipe::Settings& settings);

class Calibration {
 public:
  // `request`: of the folder to be written. Reads the model and looks at the data.
  Calibration(const models::ModelRequest& request, const quantize::FormatTable& table, Invocation& call);

  // Both measure every row that the score file does not hold; `request` must say its dtype.
  // By importance: the first format, the second, the last.
  Decided dynamic();
  // Within the budget, improved by --exchange-steps.
  Decided budgeted(const quantize::Budget& budget);
  // The same for each budget that something fits into, and what the mixes measure on rows that decided nothing.
  void curve(const std::vector<quantize::Budget>& budgets);
  // In float32.
  const models::BuiltModel& floats() const { return model_; }
  // Chooses the codes anew by the calibration rows, as --rounding says.
  void round(quantize::MixedPrecisionQuantizer& quantizer);
  // When the folder is written: what was kept of the rounding is of no more use.
  void end_rounding();
  // Of the folder that was written, on rows that decided nothing.
  void measure(const std::filesystem::path& folder) const;

 private:
  void share_rows();
  nlohmann::ordered_json measured_on() const;
  const quantize::Costs& costs_for(const quantize::Budget& budget);
  nlohmann::ordered_json data_identity() const;
  void open_work(const quantize::MixedPrecisionQuantizer& quantizer, const quantize::RoundingRequest& request);
  void open_scores();
  void score_rows();
  void score_alone();
  void score();  // for budgets: as --predict-by says, or --sweep has it
  quantize::Exchanged exchanged(const quantize::BudgetedMix& first, const quantize::Costs& costs);
  quantize::MixMeter& mixes();

  const models::ModelRequest request_;
  const quantize::FormatTable& table_;
  Invocation& call_;
  std::optional<quantize::Costs> bytes_, times_;  // once they are asked for
  models::BuiltModel model_;
  std::unique_ptr<data::DataSource> source_;
  int64_t calibration_rows_ = 0, held_out_rows_ = 0, exchange_rows_ = 0;  // in this order
  std::unique_ptr<quantize::ScoreMeter> meter_;
  std::unique_ptr<quantize::ScoreFile> file_;
  std::unique_ptr<quantize::MixMeter> mixes_;
  quantize::RowScore scores_;
  std::optional<quantize::RoundingWork> work_;
};

}  // namespace limbeck::cli
