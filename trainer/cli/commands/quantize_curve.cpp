#include "trainer/cli/commands/quantize_curve.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/cli/commands/quantize_tables.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {

using quantize::Distance;

std::string curve_table(const quantize::FormatTable& table, const std::vector<CurvePoint>& points, int width) {
  const quantize::JointMeasure& any = points.front().measured;
  const bool predicts = any.distance == Distance::kPredictions;
  std::vector<TextTable::Column> columns = {{"budget"},
                                            {"bytes", Align::kRight},
                                            {"bits a weight", Align::kRight},
                                            {"of float32", Align::kRight},
                                            {"predicted loss", Align::kRight},
                                            {quantize::heading(any.distance), Align::kRight},
                                            {"95 % of rows drawn again"}};
  if (predicts) columns.push_back({"perplexity", Align::kRight});
  TextTable rows(columns);
  for (const CurvePoint& point : points) {
    const quantize::SizeEstimate size = quantize::estimate_model_size(table, point.found.mix.mix);
    const quantize::JointMeasure& measured = point.measured;
    std::vector<std::string> cells = {point.budget.text(),
                                      std::to_string(size.mixed_precision_bytes),
                                      fmt::format("{:.3f}", 32 / size.compression_ratio),
                                      fmt::format("1/{:.2f}", size.compression_ratio),
                                      fmt::format("{:.6f}", point.found.mix.loss),
                                      fmt::format("{:.6f}", measured.kl),
                                      fmt::format("{:.6f} to {:.6f}", measured.kl_low, measured.kl_high)};
    if (predicts) cells.push_back(fmt::format("{:.4f}", measured.perplexity));
    rows.add_row(cells);
  }
  const std::string floats = predicts ? fmt::format("; in floats: perplexity {:.4f}", any.float_perplexity) : "";
  return rows.render(width) +
         fmt::format("measured on {} held-out rows of {} targets{}", any.rows, any.targets, floats);
}

std::string measure_table(const quantize::JointMeasure& measure, int width) {
  std::vector<TextTable::Column> columns = {{"measured on"},
                                            {"targets", Align::kRight},
                                            {quantize::heading(measure.distance), Align::kRight},
                                            {"95 % of rows drawn again"}};
  std::vector<std::string> cells = {fmt::format("{} held-out rows", measure.rows), std::to_string(measure.targets),
                                    fmt::format("{:.6f}", measure.kl),
                                    fmt::format("{:.6f} to {:.6f}", measure.kl_low, measure.kl_high)};
  if (measure.distance == Distance::kPredictions) {
    columns.push_back({"perplexity", Align::kRight});
    columns.push_back({"in floats", Align::kRight});
    cells.push_back(fmt::format("{:.4f}", measure.perplexity));
    cells.push_back(fmt::format("{:.4f}", measure.float_perplexity));
  }
  TextTable table(columns);
  table.add_row(cells);
  return table.render(width);
}

std::string curve_mixes(const quantize::FormatTable& table, const std::vector<CurvePoint>& points, int width) {
  std::vector<TextTable::Column> columns = {{"module"}};
  for (const CurvePoint& point : points) columns.push_back({point.budget.text()});
  TextTable rows(columns);
  for (const quantize::Candidate& module : table.modules()) {
    std::vector<std::string> cells = {module.path};
    for (const CurvePoint& point : points) cells.push_back(point.found.mix.mix.at(module.path));
    rows.add_row(cells);
  }
  return rows.render(width);
}

nlohmann::ordered_json curve_json(const quantize::FormatTable& table, const std::vector<CurvePoint>& points) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const CurvePoint& point : points) {
    const quantize::BudgetedMix& mix = point.found.mix;
    json.push_back({{"asked", point.budget.text()},
                    {point.budget.is_time() ? "allowed_ns" : "allowed_bytes", mix.allowed},
                    {point.budget.is_time() ? "ns" : "bytes", mix.cost},
                    {"predicted_loss", mix.loss},
                    {"estimate", estimate_json(quantize::estimate_model_size(table, mix.mix))},
                    {"measured", measure_json(point.measured)},
                    {"exchange", exchange_json(point.found)},
                    {"modules", mix_json(table, mix.mix, {"predicted loss", mix.predicted})}});
  }
  return json;
}

nlohmann::ordered_json measure_json(const quantize::JointMeasure& measure) {
  if (measure.distance == Distance::kPooledStates) {
    return {{"rows", measure.rows},
            {"targets", measure.targets},
            {"turned", measure.kl},
            {"turned_low", measure.kl_low},
            {"turned_high", measure.kl_high}};
  }
  return {{"rows", measure.rows},
          {"targets", measure.targets},
          {"kl", measure.kl},
          {"kl_low", measure.kl_low},
          {"kl_high", measure.kl_high},
          {"float_perplexity", measure.float_perplexity},
          {"perplexity", measure.perplexity}};
}

nlohmann::ordered_json exchange_json(const quantize::Exchanged& exchanged) {
  nlohmann::ordered_json json = {{"rows", exchanged.rows},
                                 {"kl_before", exchanged.kl_before},
                                 {"kl_after", exchanged.kl_after},
                                 {"tries", nlohmann::ordered_json::array()}};
  for (const quantize::ExchangeTry& one : exchanged.tries)
    json["tries"].push_back({{"what", one.what},
                             {"predicted", one.predicted},
                             {"kl", one.kl},
                             {"change", one.change.kl},
                             {"change_low", one.change.low},
                             {"change_high", one.change.high},
                             {"kept", one.kept}});
  return json;
}

std::string exchange_line(const quantize::Exchanged& exchanged) {
  const auto kept =
      std::count_if(exchanged.tries.begin(), exchanged.tries.end(), [](const auto& one) { return one.kept; });
  return fmt::format("{} of {} exchanges helped beyond chance: KL on the {} rows that judge them {:.6f}, before {:.6f}",
                     kept, exchanged.tries.size(), exchanged.rows, exchanged.kl_after, exchanged.kl_before);
}

}  // namespace limbeck::cli
