#include "trainer/cli/commands/quantize_measured.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "modules/errors.h"
#include "modules/precision/precision.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/console/progress.h"
#include "trainer/cli/console/text_table.h"
#include "trainer/data/measured_rows.h"
#include "trainer/quantize/alone_meter.h"
#include "trainer/quantize/importance.h"
#include "trainer/quantize/sweep_scores.h"

namespace limbeck::cli {

namespace {

// The model that the formats are measured against: in float32, whatever it is stored in.
models::ModelRequest float_request(const std::filesystem::path& folder, c10::Device device) {
  models::ModelRequest request;
  request.folder = folder;
  request.dtype = at::kFloat;
  request.dtype_source = "limbeck quantize measures in float32";
  request.device = device;
  return request;
}

}  // namespace

std::unique_ptr<Progress> progress_of(const Invocation& call, const char* label, const char* unit, int64_t all) {
  return std::make_unique<Progress>(call.console.err(), label, unit, all,
                                    ProgressStyle{.width = terminal_width(2), .quiet = call.console.quiet()});
}

std::filesystem::path beside_output(const recipe::Settings& settings, const char* ending) {
  std::filesystem::path output = settings.required_path("output");
  if (!output.has_filename()) output = output.parent_path();
  return output.concat(ending);
}

std::filesystem::path score_path(const recipe::Settings& settings) {
  return settings.given("scores") ? settings.path("scores") : beside_output(settings, ".scores.jsonl");
}

Calibration::Calibration(const models::ModelRequest& request, const quantize::FormatTable& table, Invocation& call)
    : request_(request), table_(table), call_(call) {
  const auto& settings = call.settings;
  settings.required_path("data");
  models::ModelRequest asked = float_request(request.folder, request.device);
  asked.allow_nonfinite = request.allow_nonfinite;
  asked.trainable = true;
  model_ = models::load_model(asked);
  source_ = std::make_unique<data::DataSource>(rows_in_order(settings, model_, /*batch_size=*/1));
  for (const std::string& note : source_->notes()) call.console.note(note);

  share_rows();
}

// First those that decide, then those that measure the result, then those that judge exchanges: the result is measured
// on the same rows whether there are exchanges or not, unless the data are too short for all of them.
void Calibration::share_rows() {
  const auto& settings = call_.settings;
  const int64_t all = source_->batches_per_epoch();
  calibration_rows_ = settings.integer("calibration-rows");
  const int64_t left = all - calibration_rows_;
  const bool exchanges = settings.given("budget") || settings.given("budgets");
  exchange_rows_ =
      exchanges && settings.integer("exchange-steps") > 0 ? std::min(settings.integer("exchange-rows"), left / 2) : 0;
  held_out_rows_ = std::min(settings.integer("held-out-rows"), left - exchange_rows_);
  if (left < 1) {
    throw InputDataError(fmt::format(
        "data {} are {} rows: wanted --calibration-rows={} and at least one more, which decides nothing: lower it, or "
        "--sequence-length, or prepare more data",
        settings.where("data"), all, calibration_rows_));
  }
}

// Times are read once they are asked for.
const quantize::Costs& Calibration::costs_for(const quantize::Budget& budget) {
  std::optional<quantize::Costs>& costs = budget.is_time() ? times_ : bytes_;
  if (costs) return *costs;
  if (!budget.is_time()) return costs.emplace(table_);
  if (!call_.settings.given("times")) {
    const std::string dtype = precision::dtype_name(*request_.dtype);
    throw UsageError(fmt::format(
        "limbeck quantize: a budget of {} goes by what was measured: limbeck profile RECIPE --run=DIR "
        "--precisions={},int8+{},int4+{} (the --formats to choose from, beside {}), then --times=DIR/profile.json",
        budget.text(), dtype, dtype, dtype, dtype));
  }
  return costs.emplace(table_, call_.settings.path("times"), *request_.dtype);
}

void Calibration::open_scores() {
  const auto& settings = call_.settings;
  meter_ = std::make_unique<quantize::ScoreMeter>(model_, table_, *request_.dtype);
  file_ = std::make_unique<quantize::ScoreFile>(
      score_path(settings), quantize::ScoreFile::identity(model_, table_, *request_.dtype, data_identity()));
}

nlohmann::ordered_json Calibration::data_identity() const {
  return {{"digest", source_->manifest().digest},
          {"sequence_length", call_.settings.integer("sequence-length")},
          {"packing", call_.settings.text("packing")}};
}

void Calibration::score_rows() {
  open_scores();
  const auto progress = progress_of(call_, "scores", "rows", calibration_rows_);
  int64_t kept = 0;
  for (int64_t row = 0; row < calibration_rows_; ++row) {
    const quantize::RowScore* known = file_->find(row);
    if (known != nullptr) {
      ++kept;
    } else {
      file_->add(row, meter_->measure(source_->batch(row)));
      known = file_->find(row);
    }
    scores_.add(*known);
    progress->update(row + 1);
  }
  progress->finish();
  if (kept > 0) call_.console.note(fmt::format("{} of {} rows were measured before", kept, calibration_rows_));
  if (scores_.targets == 0) {
    throw InputDataError(fmt::format("data {}: the calibration rows hold no target", call_.settings.where("data")));
  }
  for (const std::string& line : quantize::experts_without_tokens(scores_)) call_.console.warning(line);
  call_.result["calibration"] = {{"rows", calibration_rows_}, {"targets", scores_.targets}, {"rows_kept", kept}};
}

// Each module alone in each format, where that is what predicts.
void Calibration::score_alone() {
  const std::string& word = call_.settings.text("predict-by");
  if (word == "error") return;
  const size_t modules = table_.modules().size();
  std::optional<quantize::AloneMeter> meter;  // a model of its own: read where something is left to be measured
  const auto progress =
      progress_of(call_, "modules alone", "modules", calibration_rows_ * static_cast<int64_t>(modules));
  for (quantize::ModuleScore& module : scores_.modules) module.divergences.assign(table_.formats().size(), 0.0);
  int64_t done = 0;
  for (int64_t row = 0; row < calibration_rows_; ++row) {
    std::optional<quantize::FloatRow> floats;
    for (size_t module = 0; module < modules; ++module) {
      if (file_->alone(module, row) == nullptr) {
        if (!meter) meter.emplace(models::load_model(float_request(request_.folder, request_.device)), *meter_, table_);
        if (!floats) floats.emplace(model_, source_->batch(row));
        file_->add_alone(module, row, meter->measure(module, *floats));
      }
      const std::vector<double>& kl = *file_->alone(module, row);
      for (size_t format = 0; format < kl.size(); ++format) scores_.modules[module].divergences[format] += kl[format];
      progress->update(++done);
    }
  }
  progress->finish();
  scores_ =
      quantize::predicted(std::move(scores_), word == "kl" ? quantize::PredictedBy::kKl : quantize::PredictedBy::kBoth);
}

void Calibration::score() {
  if (!call_.settings.given("sweep")) {
    score_rows();
    return score_alone();
  }
  open_scores();
  scores_ = quantize::scores_of_sweep(table_, call_.settings.path("sweep"), *request_.dtype);
}

Decided Calibration::dynamic() {
  const auto& settings = call_.settings;
  const auto& formats = table_.formats();
  if (formats.size() < 3) {
    throw UsageError(fmt::format(
        "--formats={}: --policy=dynamic wants three: of the most important modules, of the others, and of the least "
        "important ones",
        settings.text("formats")));
  }
  score_rows();
  const quantize::DynamicQuantizationPolicy policy{quantize::importance_of(table_, scores_, meter_->mean_weights()),
                                                   settings.number("high-ratio"), settings.number("low-ratio")};
  return {policy.mix(formats[0].name, formats[1].name, formats.back().name), {"importance", policy.layer_importance}};
}

quantize::MixMeter& Calibration::mixes() {
  if (!mixes_) {
    quantize::MixedModel mixed(models::load_model(float_request(request_.folder, request_.device)), *meter_, table_,
                               *request_.dtype);
    mixes_ = std::make_unique<quantize::MixMeter>(model_, std::move(mixed), table_, *file_,
                                                  [this](int64_t row) { return source_->batch(row); });
  }
  return *mixes_;
}

quantize::Exchanged Calibration::exchanged(const quantize::BudgetedMix& first, const quantize::Costs& costs) {
  const int64_t tries = call_.settings.integer("exchange-steps");
  if (tries == 0) return {first, 0, 0, 0, {}};
  if (exchange_rows_ < quantize::kLeastPairedRows) {
    call_.console.warning(
        fmt::format("no exchange is tried: {} rows are left to judge them by, wanted {} behind {} held-out ones: "
                    "prepare more data, or lower --sequence-length",
                    exchange_rows_, quantize::kLeastPairedRows, held_out_rows_));
    return {first, 0, 0, exchange_rows_, {}};
  }
  const auto progress = progress_of(call_, "exchange", "mixes", tries + 1);
  int64_t measured = 0;
  const auto divergence = [&](const quantize::Mix& mix) {
    auto rows = mixes().measure(mix, {calibration_rows_ + held_out_rows_, exchange_rows_});
    progress->update(++measured);
    return rows;
  };
  const quantize::Exchanged found = quantize::exchange(table_, costs, scores_, first, tries, divergence);
  progress->finish();
  for (const quantize::ExchangeTry& one : found.tries) {
    if (one.kept)
      call_.console.note(fmt::format("exchanged {}: KL {:.6f}, less by {:.6f} to {:.6f}", one.what, one.kl,
                                     -one.change.high, -one.change.low));
  }
  return found;
}

Decided Calibration::budgeted(const quantize::Budget& budget) {
  // Where nothing fits, it is said before anything is measured.
  const quantize::Costs& costs = costs_for(budget);
  if (const std::string why = quantize::why_too_small(table_, costs, budget); !why.empty()) throw UsageError(why);
  score();
  const quantize::BudgetedMix solved = quantize::budgeted_mix(table_, costs, scores_, budget);
  const quantize::Exchanged exchanges = exchanged(solved, costs);
  const quantize::BudgetedMix& found = exchanges.mix;
  if (call_.settings.integer("exchange-steps") > 0) {
    call_.result["exchange"] = exchange_json(exchanges);
    call_.console.result(exchange_line(exchanges));
  }
  call_.result["budget"] = {{"asked", budget.text()},
                            {budget.is_time() ? "allowed_ns" : "allowed_bytes", found.allowed},
                            {budget.is_time() ? "ns" : "bytes", found.cost},
                            {"predicted_loss", found.loss},
                            {"predicted_loss_solved", solved.loss}};
  call_.console.result(fmt::format("budget {}: {} of {}, predicted loss {:.6f} nats a token", budget.text(),
                                   costs.said(found.cost), costs.said(found.allowed), found.loss));
  return {found.mix, {"predicted loss", found.predicted}};
}

void Calibration::curve(const std::vector<quantize::Budget>& budgets) {
  std::vector<quantize::Budget> possible;
  std::vector<std::string> too_small;
  for (const quantize::Budget& budget : budgets) {
    const std::string why = quantize::why_too_small(table_, costs_for(budget), budget);
    why.empty() ? possible.push_back(budget) : too_small.push_back(why);
  }
  if (possible.empty()) throw UsageError(too_small.back());
  for (const std::string& why : too_small) call_.console.warning(why);
  score();
  std::vector<CurvePoint> points;
  for (const quantize::Budget& budget : possible) {
    const quantize::Costs& costs = costs_for(budget);
    const quantize::Exchanged found = exchanged(quantize::budgeted_mix(table_, costs, scores_, budget), costs);
    const auto rows = mixes().measure(found.mix.mix, {calibration_rows_, held_out_rows_});
    points.push_back({budget, found, quantize::joint_measure(rows, quantize::distance_of(model_))});
  }
  call_.console.note(curve_mixes(table_, points, call_.width));
  call_.console.result(curve_table(table_, points, call_.width));
  call_.console.result(
      fmt::format("scored on {} calibration rows, exchanges judged on {} rows behind the held-out ones",
                  calibration_rows_, points.front().found.rows));
  call_.result["curve"] = curve_json(table_, points);
  call_.result["measured_on"] = measured_on();
  call_.result["too_small"] = too_small;
}

nlohmann::ordered_json Calibration::measured_on() const {
  return data::measured_rows(*source_, rows_in_order(call_.settings, model_, /*batch_size=*/1),
                             {calibration_rows_, held_out_rows_});
}

void Calibration::measure(const std::filesystem::path& folder) const {
  const models::BuiltModel written = models::load_model(float_request(folder, request_.device));
  const auto progress = progress_of(call_, "measure", "rows", held_out_rows_);
  std::vector<quantize::RowDivergence> rows;
  for (int64_t i = 0; i < held_out_rows_; ++i) {
    rows.push_back(quantize::divergence_on(model_, written, source_->batch(calibration_rows_ + i)));
    progress->update(i + 1);
  }
  progress->finish();
  const quantize::JointMeasure found = quantize::joint_measure(rows, quantize::distance_of(model_));
  call_.result["measured"] = measure_json(found);
  call_.result["measured_on"] = measured_on();
  call_.console.result(measure_table(found, call_.width));
}

}  // namespace limbeck::cli
