#include "trainer/cli/commands/evaluation_table.h"

#include <fmt/format.h>

#include <set>

#include "modules/precision/contract_modules.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {

namespace {

std::string number(const double* value) { return value == nullptr ? "" : fmt::format("{:.4f}", *value); }

}  // namespace

std::string human_bytes(int64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024.0 && unit < 4) value /= 1024.0, ++unit;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, units[unit]);
}

std::string evaluation_table(const evaluate::Evaluation& evaluation, const objective::Distillation& objective,
                             int width) {
  TextTable models({{"model"},
                    {"family"},
                    {"parameters", Align::kRight},
                    {"storage", Align::kRight},
                    {"perplexity", Align::kRight},
                    {"accuracy", Align::kRight}});
  auto row = [&](const char* name, const models::BuiltModel& built, const char* perplexity, const char* accuracy) {
    const precision::Footprint weight = precision::total_footprint(*built.model);
    models.add_row({name, built.config.architecture.family, std::to_string(weight.values), human_bytes(weight.bytes),
                    number(evaluation.find(perplexity)), number(evaluation.find(accuracy))});
  };
  if (objective.teacher()) row("teacher", *objective.teacher(), "teacher_perplexity", "teacher_accuracy");
  row("student", objective.student(), "perplexity", "accuracy");
  const std::set<std::string> shown = {"perplexity", "teacher_perplexity", "accuracy", "teacher_accuracy"};
  TextTable rest({{"measure"}, {"value", Align::kRight}});
  for (const auto& [name, value] : evaluation.values) {
    if (!shown.contains(name)) rest.add_row({name, fmt::format("{:.6g}", value)});
  }
  return models.render(width) + rest.render(width);
}

nlohmann::ordered_json evaluation_json(const evaluate::Evaluation& evaluation,
                                       const objective::Distillation& objective) {
  nlohmann::ordered_json json;
  for (const auto& [name, value] : evaluation.values) json[name] = value;
  auto add = [&](const char* name, const models::BuiltModel& built) {
    const precision::Footprint weight = precision::total_footprint(*built.model);
    json[name] = {
        {"family", built.config.architecture.family}, {"parameters", weight.values}, {"storage_bytes", weight.bytes}};
  };
  if (objective.teacher()) add("teacher", *objective.teacher());
  add("student", objective.student());
  return json;
}

}  // namespace limbeck::cli
