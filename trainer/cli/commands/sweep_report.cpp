#include "trainer/cli/commands/sweep_report.h"

#include <fmt/format.h>

#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/console/progress.h"
#include "trainer/cli/console/text_table.h"
#include "trainer/recipe/recipe_file.h"

namespace limbeck::cli {

namespace {

using nlohmann::ordered_json;
using sweep::Kind;

std::string quality_text(Kind kind, double quality) {
  if (kind == Kind::kClassifier) return fmt::format("{:.2f} %", quality);
  return kind == Kind::kEncoder ? fmt::format("{:.6f}", quality) : fmt::format("{:.4f}", quality);
}

// Points of accuracy are few digits, a perplexity moves by less.
std::string drop_text(Kind kind, double drop) {
  if (kind == Kind::kClassifier) return fmt::format("{:.2f} pp", drop);
  return kind == Kind::kEncoder ? fmt::format("{:.4f} pp", drop) : fmt::format("{:.4f} %", drop);
}

std::string drop_with_interval(Kind kind, const sweep::Drop& drop) {
  return fmt::format("{} [{}, {}]", drop_text(kind, drop.value), drop_text(kind, drop.low), drop_text(kind, drop.high));
}

std::string name_of(const sweep::Candidate& candidate) {
  const std::string& path = candidate.module;
  return fmt::format("{} ({})", candidate.is_block() ? "block" : path.substr(path.rfind('.') + 1), path);
}

std::string milliseconds(const std::optional<double>& seconds) {
  return seconds ? fmt::format("{:.3f}", 1000 * *seconds) : "";
}

std::string marks_of(const sweep::MeasuredCandidate& one) {
  return fmt::format("{}{}", one.selected ? "selected" : "", one.pareto ? (one.selected ? ", pareto" : "pareto") : "");
}

ordered_json or_null(const std::optional<double>& value) { return value ? ordered_json(*value) : ordered_json(); }

using Share = sweep::SweepResult::Share;

ordered_json of_evaluations(const std::optional<Share>& share, double Share::*of) {
  return share ? ordered_json((*share).*of) : ordered_json();
}

// An accuracy is a share, as every other JSON has it; drops are in points.
double quality_json(Kind kind, double quality) { return kind == Kind::kClassifier ? quality / 100 : quality; }

void put_quality(ordered_json& json, bool measured, double quality, const sweep::Drop& drop, double kl,
                 const quantize::Interval& kl_interval) {
  const auto put = [&](const char* name, double value) {
    json[name] = measured ? ordered_json(value) : ordered_json();
  };
  put("quality", quality), put("drop", drop.value), put("low", drop.low), put("high", drop.high), put("p", drop.p);
  put("kl", kl), put("kl_low", kl_interval.low), put("kl_high", kl_interval.high);
}

ordered_json json_of(const sweep::WholeModel& model, Kind kind) {
  const bool measured = model.status == sweep::Status::kMeasured;
  ordered_json json = {{"format", model.format}};
  put_quality(json, measured, quality_json(kind, model.quality), model.drop, model.kl, model.kl_interval);
  json["seconds"] = model.seconds > 0 ? ordered_json(model.seconds) : ordered_json();
  json["bytes"] = model.bytes;
  json["status"] = sweep::status_name(model.status);
  json["reason"] = model.reason;
  return json;
}

ordered_json json_of(const sweep::MeasuredCandidate& one, Kind kind) {
  ordered_json json = {{"module", one.candidate.module},
                       {"role", one.candidate.role},
                       {"format", one.candidate.format},
                       {"status", sweep::status_name(one.status)},
                       {"reason", one.reason}};
  put_quality(json, one.is_measured(), quality_json(kind, one.quality), one.drop, one.kl, one.kl_interval);
  json["logit_error"] = one.is_measured() ? ordered_json(one.logit_error) : ordered_json();
  json["seconds"] = or_null(one.cost.seconds);
  json["seconds_before"] = or_null(one.cost.seconds_before);
  json["bytes"] = one.cost.bytes;
  json["bytes_before"] = one.cost.bytes_before;
  json["score"] = one.is_measured() ? ordered_json(one.score) : ordered_json();
  json["pareto"] = one.pareto;
  json["selected"] = one.selected;
  return json;
}

}  // namespace

std::string candidate_line(const sweep::MeasuredCandidate& one, Kind kind, int64_t number, int64_t all) {
  const std::string head = fmt::format("[{}/{}] {}  {}", number, all, name_of(one.candidate), one.candidate.format);
  if (!one.is_measured()) return fmt::format("{}  {}: {}", head, sweep::status_name(one.status), one.reason);
  return fmt::format("{}  {} {}  drop {}  KL {:.3e}  logit error {:.3e}", head, sweep::quality_name(kind),
                     quality_text(kind, one.quality), drop_text(kind, one.drop.value), one.kl, one.logit_error);
}

std::string candidates_table(const sweep::SweepResult& result, int width) {
  const Kind kind = result.kind;
  TextTable table({{"module"},
                   {"format"},
                   {sweep::quality_name(kind), Align::kRight},
                   {"drop [95 %]", Align::kRight},
                   {"p", Align::kRight},
                   {"KL", Align::kRight},
                   {"logit error", Align::kRight},
                   {"ms", Align::kRight},
                   {"before", Align::kRight},
                   {"bytes", Align::kRight},
                   {"before", Align::kRight},
                   {"score", Align::kRight},
                   {""}});
  for (const sweep::MeasuredCandidate& one : result.candidates) {
    const bool measured = one.is_measured();
    const auto shown = [&](const std::string& text) { return measured ? text : std::string(); };
    table.add_row({one.candidate.module, one.candidate.format, shown(quality_text(kind, one.quality)),
                   shown(drop_with_interval(kind, one.drop)), shown(fmt::format("{:.3g}", one.drop.p)),
                   shown(fmt::format("{:.2e}", one.kl)), shown(fmt::format("{:.2e}", one.logit_error)),
                   milliseconds(one.cost.seconds), milliseconds(one.cost.seconds_before), human_bytes(one.cost.bytes),
                   human_bytes(one.cost.bytes_before), shown(fmt::format("{:.4f}", one.score)),
                   measured ? marks_of(one) : fmt::format("{}: {}", sweep::status_name(one.status), one.reason)});
  }
  return table.render(width);
}

std::string models_table(const sweep::SweepResult& result, int width) {
  const Kind kind = result.kind;
  TextTable table({{"whole model"},
                   {sweep::quality_name(kind), Align::kRight},
                   {"drop [95 %]", Align::kRight},
                   {"p", Align::kRight},
                   {"KL", Align::kRight},
                   {"seconds", Align::kRight},
                   {"bytes", Align::kRight},
                   {""}});
  table.add_row({"float32", quality_text(kind, result.baseline.quality), "", "", "",
                 fmt::format("{:.2f}", result.baseline.seconds), human_bytes(result.baseline.bytes), ""});
  const auto add = [&](const sweep::WholeModel& model) {
    const std::string seconds = model.seconds > 0 ? fmt::format("{:.2f}", model.seconds) : "";
    if (model.status != sweep::Status::kMeasured) {
      table.add_row({model.format, "", "", "", "", seconds, human_bytes(model.bytes),
                     fmt::format("{}: {}", sweep::status_name(model.status), model.reason)});
      return;
    }
    table.add_row({model.format, quality_text(kind, model.quality), drop_with_interval(kind, model.drop),
                   fmt::format("{:.3g}", model.drop.p), fmt::format("{:.2e}", model.kl), seconds,
                   human_bytes(model.bytes), ""});
  };
  for (const sweep::WholeModel& model : result.whole_models) add(model);
  if (result.combined) add(result.combined->model);
  return table.render(width);
}

std::string combined_lines(const sweep::SweepResult& result) {
  if (!result.combined) {
    return fmt::format("combined model: none: no module saves the median or more and loses at most {} points",
                       result.max_drop);
  }
  const sweep::WholeModel& model = result.combined->model;
  const std::string head = fmt::format("combined model of {} rules: predicted drop {}", result.combined->rules.size(),
                                       drop_with_interval(result.kind, result.combined->predicted));
  if (model.status != sweep::Status::kMeasured)
    return fmt::format("{}; {}: {}", head, sweep::status_name(model.status), model.reason);
  std::string lines = fmt::format("{}, measured {}, {} p = {:.3g}", head, drop_with_interval(result.kind, model.drop),
                                  result.test, model.drop.p);
  if (result.choosing.are_others && result.combined->on_choosing_rows)
    lines += fmt::format("\non the {} rows that chose it: {}", result.choosing.rows,
                         drop_with_interval(result.kind, *result.combined->on_choosing_rows));
  if (result.is_safe(model.drop))
    return lines + fmt::format("\nsafe: {} rows exclude a drop of more than {}", result.rows,
                               drop_text(result.kind, result.max_drop));
  return lines + fmt::format("\nnot called safe: {} on {} rows does not exclude a drop of {}, and the bound is {}",
                             drop_text(result.kind, model.drop.value), result.rows,
                             drop_text(result.kind, model.drop.high), drop_text(result.kind, result.max_drop));
}

std::string time_line(const sweep::SweepResult& result) {
  const auto count = result.candidates.size();
  if (!result.share) {
    return fmt::format("{} candidates, some of them measured before: {} now; a full evaluation takes {:.2f} s", count,
                       clock_text(result.seconds), result.choosing.seconds);
  }
  const auto text = [&](double sweep::SweepResult::Share::*of) {
    const std::string share = fmt::format("{:.3f}", (*result.share).*of);
    if (!result.processor_share) return share;
    return fmt::format("{} ({:.3f} in the time of threads)", share, (*result.processor_share).*of);
  };
  std::string line = fmt::format("{} candidates in {:.2f} s: {} of what {} full evaluations of {:.2f} s take", count,
                                 result.seconds, text(&Share::of_chosen), count, result.choosing.seconds);
  if (result.choosing.are_others)
    line += fmt::format(" on the same {} rows, {} of as many on all {} rows", result.choosing.rows,
                        text(&Share::of_all), result.choosing.rows + result.rows);
  return line;
}

ordered_json sweep_json(const sweep::SweepResult& result) {
  ordered_json json = {{"kind", sweep::kind_name(result.kind)},
                       {"quality", sweep::quality_name(result.kind)},
                       {"rows", result.rows},
                       {"targets", result.targets},
                       {"measured_on", result.measured_on},
                       {"choosing",
                        {{"rows", result.choosing.rows},
                         {"targets", result.choosing.targets},
                         {"others", result.choosing.are_others},
                         {"quality", quality_json(result.kind, result.choosing.quality)},
                         {"seconds", result.choosing.seconds}}},
                       {"max_drop", result.max_drop},
                       {"baseline",
                        {{"quality", quality_json(result.kind, result.baseline.quality)},
                         {"seconds", result.baseline.seconds},
                         {"bytes", result.baseline.bytes}}},
                       {"whole_models", ordered_json::array()},
                       {"candidates", ordered_json::array()}};
  for (const sweep::WholeModel& model : result.whole_models)
    json["whole_models"].push_back(json_of(model, result.kind));
  for (const sweep::MeasuredCandidate& one : result.candidates) json["candidates"].push_back(json_of(one, result.kind));
  json["combined"] = ordered_json();
  if (result.combined) {
    ordered_json& combined = json["combined"] = {{"modules", ordered_json::array()}};
    for (const sweep::MeasuredCandidate& one : result.candidates) {
      if (one.selected)
        combined["modules"].push_back({{"module", one.candidate.module}, {"format", one.candidate.format}});
    }
    combined.update(json_of(result.combined->model, result.kind));
    combined.erase("format");
    combined["test"] = result.test;
    combined["safe"] =
        result.combined->model.status == sweep::Status::kMeasured && result.is_safe(result.combined->model.drop);
    combined["predicted_drop"] = result.combined->predicted.value;
    combined["predicted_low"] = result.combined->predicted.low;
    combined["predicted_high"] = result.combined->predicted.high;
    combined["on_choosing_rows"] = ordered_json();
    if (const auto& drop = result.combined->on_choosing_rows)
      combined["on_choosing_rows"] = {{"drop", drop->value}, {"low", drop->low}, {"high", drop->high}};
    combined["rules"] = result.combined->rules;
  }
  json["seconds"] = {{"sweep", result.seconds},
                     {"full_evaluation", result.baseline.seconds},
                     {"share_of_full_evaluations", of_evaluations(result.share, &Share::of_chosen)},
                     {"share_of_full_evaluations_of_all_rows", of_evaluations(result.share, &Share::of_all)},
                     {"share_of_thread_time", of_evaluations(result.processor_share, &Share::of_chosen)},
                     {"share_of_thread_time_of_all_rows", of_evaluations(result.processor_share, &Share::of_all)}};
  return json;
}

std::string rules_ini(const std::vector<std::string>& rules) {
  std::string text =
      "# From limbeck sweep: lines for a recipe. As flags: --precision.rule=\"...\" of train and eval,\n"
      "# --rule=\"...\" of quantize.\n[precision]\n";
  for (const std::string& rule : rules) text += fmt::format("rule = {}\n", recipe::written_value(rule));
  return text;
}

}  // namespace limbeck::cli
