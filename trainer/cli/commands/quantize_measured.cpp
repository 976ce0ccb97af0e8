#include "trainer/cli/commands/quantize_measured.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"
#include "modules/precision/contract_modules.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/console/progress.h"
#include "trainer/cli/console/text_table.h"
#include "trainer/quantize/compensated_model.h"
#include "trainer/quantize/exchange.h"
#include "trainer/quantize/importance.h"
#include "trainer/quantize/joint_measure.h"

namespace limbeck::cli {

namespace {

using recipe::OptionKind;

// The model that the formats are measured against: in float32, whatever it is stored in.
models::ModelRequest float_request(const std::filesystem::path& folder, c10::Device device) {
  models::ModelRequest request;
  request.folder = folder;
  request.dtype = at::kFloat;
  request.dtype_source = "limbeck quantize measures in float32";
  request.device = device;
  return request;
}

std::unique_ptr<Progress> progress_of(const Invocation& call, const char* label, const char* unit, int64_t all) {
  return std::make_unique<Progress>(call.console.err(), label, unit, all,
                                    ProgressStyle{.width = terminal_width(2), .quiet = call.console.quiet()});
}

// What is packed of two models with the same contracts, but for dtypes.
void take_packed_weights(const models::BuiltModel& to, const models::BuiltModel& from) {
  const auto taking = precision::contract_modules(*to.model), giving = precision::contract_modules(*from.model);
  for (size_t i = 0; i < taking.size(); ++i) {
    for (const auto& [name, weight] : giving.at(i)->packed_weights())
      taking[i]->replace_packed_weight(name, weight.on(taking[i]->placement()));
  }
}

std::filesystem::path score_path(const recipe::Settings& settings) {
  if (settings.given("scores")) return settings.path("scores");
  std::filesystem::path output = settings.required_path("output");
  if (!output.has_filename()) output = output.parent_path();
  return output.concat(".scores.jsonl");
}

}  // namespace

Calibration::Calibration(const models::ModelRequest& request, const quantize::FormatTable& table, Invocation& call)
    : request_(request), table_(table), call_(call) {
  const auto& settings = call.settings;
  settings.required_path("data");
  models::ModelRequest asked = float_request(request.folder, request.device);
  asked.allow_nonfinite = request.allow_nonfinite;
  asked.trainable = true;
  model_ = models::load_model(asked);
  quantize::require_next_tokens(model_);
  source_ = std::make_unique<data::DataSource>(rows_in_order(settings, model_, /*batch_size=*/1));
  for (const std::string& note : source_->notes()) call.console.note(note);

  calibration_rows_ = settings.integer("calibration-rows");
  const int64_t all = source_->batches_per_epoch();
  held_out_rows_ = std::min(settings.integer("held-out-rows"), all - calibration_rows_);
  if (held_out_rows_ < 1) {
    throw InputDataError(fmt::format(
        "data {} are {} rows: wanted --calibration-rows={} and at least one more, which decides nothing: lower it, or "
        "--sequence-length, or prepare more data",
        settings.where("data"), all, calibration_rows_));
  }
}

void Calibration::open_scores() {
  const auto& settings = call_.settings;
  meter_ = std::make_unique<quantize::ScoreMeter>(model_, table_, *request_.dtype);
  const nlohmann::ordered_json data = {{"digest", source_->manifest().digest},
                                       {"sequence_length", settings.integer("sequence-length")},
                                       {"packing", settings.text("packing")}};
  file_ = std::make_unique<quantize::ScoreFile>(score_path(settings),
                                                quantize::ScoreFile::identity(model_, table_, *request_.dtype, data));
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

quantize::BudgetedMix Calibration::exchanged(const quantize::BudgetedMix& first) {
  const int64_t tries = call_.settings.integer("exchange-steps");
  if (tries == 0) return first;
  quantize::MixedModel mixed(models::load_model(float_request(request_.folder, request_.device)), *meter_, table_,
                             *request_.dtype);
  const auto progress = progress_of(call_, "exchange", "mixes", tries + 1);
  int64_t measured = 0;
  const auto divergence = [&](const quantize::Mix& mix) {
    const std::string name = fmt::format("{} rows: {}", calibration_rows_, quantize::spelled(table_, mix));
    if (!file_->divergence(name)) {
      const models::BuiltModel& in = mixed.in(mix);
      std::vector<quantize::RowDivergence> rows;
      for (int64_t row = 0; row < calibration_rows_; ++row)
        rows.push_back(quantize::divergence_on(model_, in, source_->batch(row)));
      file_->add_divergence(name, quantize::mean_divergence(rows));
    }
    progress->update(++measured);
    return *file_->divergence(name);
  };
  const quantize::Exchanged found = quantize::exchange(table_, scores_, first, tries, divergence);
  progress->finish();
  auto& json = call_.result["exchange"];
  json = {{"kl_before", found.kl_before}, {"kl_after", found.kl_after}, {"tries", nlohmann::ordered_json::array()}};
  int64_t kept = 0;
  for (const quantize::ExchangeTry& one : found.tries) {
    kept += one.kept ? 1 : 0;
    json["tries"].push_back({{"what", one.what}, {"predicted", one.predicted}, {"kl", one.kl}, {"kept", one.kept}});
    if (one.kept) call_.console.note(fmt::format("exchanged {}: KL {:.6f}", one.what, one.kl));
  }
  call_.console.result(fmt::format("{} of {} exchanges helped: KL on the calibration rows {:.6f}, before {:.6f}", kept,
                                   found.tries.size(), found.kl_after, found.kl_before));
  return found.mix;
}

Decided Calibration::budgeted() {
  const auto budget = quantize::Budget::parse(call_.settings.text("budget"), "--budget");
  // Where nothing fits, it is said before anything is measured.
  quantize::RowScore nothing;
  nothing.modules.resize(table_.modules().size());
  for (quantize::ModuleScore& module : nothing.modules) module.losses.resize(table_.formats().size());
  quantize::budgeted_mix(table_, nothing, budget);
  score_rows();
  const quantize::BudgetedMix solved = quantize::budgeted_mix(table_, scores_, budget);
  const quantize::BudgetedMix found = exchanged(solved);
  call_.result["budget"] = {{"asked", budget.text()},
                            {"allowed_bytes", found.allowed},
                            {"bytes", found.bytes},
                            {"predicted_loss", found.loss},
                            {"predicted_loss_solved", solved.loss}};
  call_.console.result(fmt::format("budget {}: {} of {} bytes, predicted loss {:.6f} nats a token", budget.text(),
                                   found.bytes, found.allowed, found.loss));
  return {found.mix, {"predicted loss", found.predicted}};
}

void Calibration::compensate(const models::ModelRequest& request, const models::BuiltModel& built) const {
  const quantize::RoundingRows rows{[this](int64_t row) { return source_->batch(row); }, calibration_rows_,
                                    call_.settings.integer("sequence-length")};
  const quantize::RoundingPlan plan = quantize::plan_rounding(built, rows);
  call_.console.note(fmt::format(
      "rounding {} modules of {} stages by {} calibration rows; at a time {} of states, one layer's, and {} of moments",
      plan.modules, plan.stages, rows.count, human_bytes(plan.state_bytes), human_bytes(plan.moment_bytes)));
  models::ModelRequest wide = request;
  wide.dtype = at::kFloat;
  wide.dtype_source = "limbeck quantize calibrates in float32";
  const models::BuiltModel packed = models::load_model(wide);
  const auto progress = progress_of(call_, "rounding", "stages", plan.stages);
  const auto rounded = quantize::round_compensated(model_, packed, request.scales, rows,
                                                   [&](int64_t stage) { progress->update(stage); });
  progress->finish();
  take_packed_weights(built, packed);
  double nearest = 0, compensated = 0;
  for (const quantize::RoundedModule& module : rounded) {
    nearest += module.nearest;
    compensated += module.compensated;
    if (module.tokens > 0) continue;
    call_.console.warning(
        fmt::format("{}: no calibration token told anything of its inputs: it is rounded to nearest", module.path));
  }
  call_.console.note(rounding_table(rounded, call_.width));
  call_.console.result(fmt::format("rounding: squared error of the modules' outputs {:.4g} a token, to nearest {:.4g}",
                                   compensated, nearest));
  call_.result["rounding"] = rounding_json(rounded);
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
  const quantize::JointMeasure found = quantize::joint_measure(rows);
  call_.result["measured"] = {{"rows", found.rows},
                              {"targets", found.targets},
                              {"kl", found.kl},
                              {"kl_low", found.kl_low},
                              {"kl_high", found.kl_high},
                              {"float_perplexity", found.float_perplexity},
                              {"perplexity", found.perplexity}};
  TextTable table({{"measured on"},
                   {"targets", Align::kRight},
                   {"KL to floats", Align::kRight},
                   {"95 % of rows drawn again"},
                   {"perplexity", Align::kRight},
                   {"in floats", Align::kRight}});
  table.add_row({fmt::format("{} held-out rows", found.rows), std::to_string(found.targets),
                 fmt::format("{:.6f}", found.kl), fmt::format("{:.6f} to {:.6f}", found.kl_low, found.kl_high),
                 fmt::format("{:.4f}", found.perplexity), fmt::format("{:.4f}", found.float_perplexity)});
  call_.console.result(table.render(call_.width));
}

void declare_measured(recipe::OptionTable& table) {
  const auto add = [&table](recipe::Option option) {
    option.flag_only = true;
    table.add(std::move(option));
  };
  add({.name = "budget",
       .kind = OptionKind::kText,
       .help = "What the model may weigh, everything counted: \"4.5 bits\" a weight, 6x less than float32, \"123456 "
               "bytes\"; each module's format is then what measured scores make best.",
       .value_name = "AMOUNT"});
  add({.name = "formats",
       .kind = OptionKind::kText,
       .fallback = "float,int8,int4-g32,int4",
       .help = "What --budget chooses from; --policy=dynamic takes the first, the second and the last of them.",
       .value_name = "FORMAT,..."});
  add({.name = "high-ratio",
       .kind = OptionKind::kNumber,
       .fallback = "0.2",
       .help = "Of --policy=dynamic: the share of modules, the most important ones, in the first format.",
       .interval = {.low = 0, .high = 1}});
  add({.name = "low-ratio",
       .kind = OptionKind::kNumber,
       .fallback = "0.4",
       .help = "Of --policy=dynamic: the share of modules, the least important ones, in the last format.",
       .interval = {.low = 0, .high = 1}});
  add({.name = "exchange-steps",
       .kind = OptionKind::kInteger,
       .fallback = "16",
       .help = "Of --budget: mixes that are measured as a whole, to improve the one that scores predict.",
       .range = {0, 1 << 20}});
  add({.name = "rounding",
       .kind = OptionKind::kChoice,
       .fallback = "nearest",
       .help =
           "nearest: each weight to its nearest code; compensated: what one column of a matrix loses is made up for "
           "by the columns behind it, by what --data shows of its inputs (GPTQ), in the same stored format.",
       .words = {"nearest", "compensated"}});
  table.group("Calibration");
  add({.name = "data",
       .kind = OptionKind::kPath,
       .help = "Folder of token shards to measure on, written by tools/prepare_data.py.",
       .value_name = "DIR"});
  add({.name = "calibration-rows",
       .kind = OptionKind::kInteger,
       .fallback = "64",
       .help = "Rows that decide, from the first one on.",
       .range = {1, 1 << 30}});
  add({.name = "held-out-rows",
       .kind = OptionKind::kInteger,
       .fallback = "64",
       .help = "Rows behind them, on which the result is measured.",
       .range = {1, 1 << 30}});
  add({.name = "sequence-length",
       .kind = OptionKind::kInteger,
       .fallback = "512",
       .help = "Tokens a row.",
       .range = {2, 1 << 24}});
  add({.name = "packing",
       .kind = OptionKind::kChoice,
       .fallback = "packed",
       .help = "packed: documents end to end, no attention across them; padded: one document a row.",
       .words = {"packed", "padded"}});
  add({.name = "scores",
       .kind = OptionKind::kPath,
       .help = "File of the scores, which is gone on with where it is there; without it, OUTPUT.scores.jsonl.",
       .value_name = "FILE",
       .writes = recipe::Writes::kFile});
}

}  // namespace limbeck::cli
