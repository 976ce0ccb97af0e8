#include "trainer/cli/commands/quantize_tables.h"

#include <fmt/format.h>

#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {

namespace {

constexpr int64_t kFloatBytes = 4;

struct FormatSum {
  int64_t tensors = 0, values = 0, bytes = 0;
};

std::pair<std::map<std::string, FormatSum>, FormatSum> summed(const quantize::FolderPlan& plan) {
  std::map<std::string, FormatSum> formats;
  FormatSum all;
  for (const auto& tensor : plan.tensors) {
    for (FormatSum* sum : {&formats[tensor.format], &all}) {
      ++sum->tensors;
      sum->values += tensor.values;
      sum->bytes += tensor.bytes;
    }
  }
  return {std::move(formats), all};
}

}  // namespace

double ratio_to_float32(int64_t values, int64_t bytes) {
  return bytes > 0 ? static_cast<double>(values * kFloatBytes) / static_cast<double>(bytes) : 0;
}

std::string plan_table(const quantize::FolderPlan& plan, int width) {
  TextTable table({{"stored in"},
                   {"tensors", Align::kRight},
                   {"values", Align::kRight},
                   {"bytes", Align::kRight},
                   {"bits a value", Align::kRight},
                   {"of float32", Align::kRight}});
  const auto row = [&table](const std::string& name, const FormatSum& sum) {
    table.add_row({name, std::to_string(sum.tensors), std::to_string(sum.values), human_bytes(sum.bytes),
                   fmt::format("{:.3f}", 8.0 * static_cast<double>(sum.bytes) / static_cast<double>(sum.values)),
                   fmt::format("1/{:.2f}", ratio_to_float32(sum.values, sum.bytes))});
  };
  const auto [formats, all] = summed(plan);
  for (const auto& [name, sum] : formats) row(name, sum);
  row("all", all);
  return table.render(width);
}

nlohmann::ordered_json plan_json(const quantize::FolderPlan& plan) {
  nlohmann::ordered_json json;
  const auto [formats, all] = summed(plan);
  for (const auto& [name, sum] : formats)
    json["formats"][name] = {{"tensors", sum.tensors}, {"values", sum.values}, {"bytes", sum.bytes}};
  json["values"] = all.values;
  json["float32_bytes"] = all.values * kFloatBytes;
  json["planned_bytes"] = all.bytes;
  return json;
}

std::string mix_table(const quantize::FormatTable& table, const quantize::Mix& mix, const Reasons& reasons, int width) {
  std::vector<TextTable::Column> columns = {{"module"}, {"format"}, {"bytes", Align::kRight}};
  if (!reasons.title.empty()) columns.push_back({reasons.title, Align::kRight});
  TextTable rows(columns);
  for (const auto& module : table.modules()) {
    const std::string& format = mix.at(module.path);
    std::vector<std::string> cells = {module.path, format, std::to_string(*module.bytes[table.format_index(format)])};
    if (!reasons.title.empty()) cells.push_back(fmt::format("{:.4g}", reasons.value.at(module.path)));
    rows.add_row(cells);
  }
  return rows.render(width);
}

nlohmann::ordered_json mix_json(const quantize::FormatTable& table, const quantize::Mix& mix, const Reasons& reasons) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& module : table.modules()) {
    const std::string& format = mix.at(module.path);
    json[module.path] = {{"format", format}, {"bytes", *module.bytes[table.format_index(format)]}};
    if (!reasons.title.empty()) json[module.path][reasons.title] = reasons.value.at(module.path);
  }
  return json;
}

std::string rounding_table(const std::vector<quantize::RoundedModule>& modules, int width) {
  TextTable table({{"module"},
                   {"format"},
                   {"error to nearest", Align::kRight},
                   {"compensated", Align::kRight},
                   {"of that", Align::kRight}});
  for (const quantize::RoundedModule& module : modules) {
    const bool rounded = module.tokens > 0;
    const double share = module.nearest > 0 ? module.compensated / module.nearest : 1;
    table.add_row({module.path, module.format, rounded ? fmt::format("{:.4g}", module.nearest) : "no token",
                   rounded ? fmt::format("{:.4g}", module.compensated) : "",
                   rounded ? fmt::format("{:.3f}", share) : ""});
  }
  return table.render(width);
}

nlohmann::ordered_json rounding_json(const std::vector<quantize::RoundedModule>& modules) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const quantize::RoundedModule& module : modules) {
    json[module.path] = {{"format", module.format},
                         {"tokens", module.tokens},
                         {"damping", module.damping},
                         {"nearest", module.nearest},
                         {"compensated", module.compensated}};
  }
  return json;
}

std::string learned_table(const std::vector<quantize::LearnedLayer>& layers, int width) {
  TextTable table({{"layer"},
                   {"error to nearest", Align::kRight},
                   {"compensated", Align::kRight},
                   {"learned", Align::kRight},
                   {"of nearest", Align::kRight},
                   {"kept"}});
  for (const quantize::LearnedLayer& layer : layers) {
    table.add_row({layer.path, fmt::format("{:.4g}", layer.nearest), fmt::format("{:.4g}", layer.compensated),
                   fmt::format("{:.4g}", layer.learned),
                   fmt::format("{:.3f}", layer.nearest > 0 ? layer.learned / layer.nearest : 1), layer.kept});
  }
  return table.render(width);
}

nlohmann::ordered_json learned_json(const std::vector<quantize::LearnedLayer>& layers) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const quantize::LearnedLayer& layer : layers) {
    json[layer.path] = {{"nearest", layer.nearest}, {"compensated", layer.compensated}, {"learned", layer.learned},
                        {"kept", layer.kept},       {"best_step", layer.step},          {"errors", layer.errors}};
  }
  return json;
}

nlohmann::ordered_json estimate_json(const quantize::SizeEstimate& estimate) {
  return {{"total_parameters", estimate.total_parameters},           {"fp32_bytes", estimate.fp32_bytes},
          {"mixed_precision_bytes", estimate.mixed_precision_bytes}, {"compression_ratio", estimate.compression_ratio},
          {"target_compression", estimate.target_compression},       {"meets_target", estimate.meets_target}};
}

std::string estimate_line(const quantize::SizeEstimate& estimate) {
  return fmt::format("{} parameters, {} in float32, {} so: {:.1f}x (target {:.1f}x: {})", estimate.total_parameters,
                     human_bytes(estimate.fp32_bytes), human_bytes(estimate.mixed_precision_bytes),
                     estimate.compression_ratio, estimate.target_compression,
                     estimate.meets_target ? "met" : "not met");
}

}  // namespace limbeck::cli
