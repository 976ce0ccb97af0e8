#include "trainer/cli/commands/quantize_curve.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/cli/commands/quantize_tables.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {

std::string curve_table(const quantize::FormatTable& table, const std::vector<CurvePoint>& points, int width) {
  TextTable rows({{"budget"},
                  {"bytes", Align::kRight},
                  {"bits a weight", Align::kRight},
                  {"of float32", Align::kRight},
                  {"predicted loss", Align::kRight},
                  {"KL to floats", Align::kRight},
                  {"95 % of rows drawn again"},
                  {"perplexity", Align::kRight}});
  for (const CurvePoint& point : points) {
    const quantize::SizeEstimate size = quantize::estimate_model_size(table, point.found.mix.mix);
    const quantize::JointMeasure& measured = point.measured;
    rows.add_row({point.budget.text(), std::to_string(size.mixed_precision_bytes),
                  fmt::format("{:.3f}", 32 / size.compression_ratio), fmt::format("1/{:.2f}", size.compression_ratio),
                  fmt::format("{:.6f}", point.found.mix.loss), fmt::format("{:.6f}", measured.kl),
                  fmt::format("{:.6f} to {:.6f}", measured.kl_low, measured.kl_high),
                  fmt::format("{:.4f}", measured.perplexity)});
  }
  const quantize::JointMeasure& any = points.front().measured;
  return rows.render(width) + fmt::format("measured on {} held-out rows of {} targets; in floats: perplexity {:.4f}",
                                          any.rows, any.targets, any.float_perplexity);
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
                    {"allowed_bytes", mix.allowed},
                    {"bytes", mix.bytes},
                    {"predicted_loss", mix.loss},
                    {"estimate", estimate_json(quantize::estimate_model_size(table, mix.mix))},
                    {"measured", measure_json(point.measured)},
                    {"exchange", exchange_json(point.found)},
                    {"modules", mix_json(table, mix.mix, {"predicted loss", mix.predicted})}});
  }
  return json;
}

nlohmann::ordered_json measure_json(const quantize::JointMeasure& measure) {
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
