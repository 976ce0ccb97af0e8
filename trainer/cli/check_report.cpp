#include "trainer/cli/check_report.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "trainer/cli/evaluation_table.h"
#include "trainer/cli/text_table.h"
#include "trainer/objective/recipe_adapter.h"

namespace limbeck::cli {
namespace {

using check::CheckReport;

std::string modules_text(const CheckReport& report, int width) {
  TextTable table({{"module"},
                   {"role"},
                   {"storage"},
                   {"in"},
                   {"compute"},
                   {"out"},
                   {"device"},
                   {"modules", Align::kRight},
                   {"parameters", Align::kRight},
                   {"bytes", Align::kRight},
                   {"from"}});
  for (const check::ModuleRow& row : report.modules) {
    table.add_row({row.path, row.role, row.storage, row.input, row.compute, row.output, row.device,
                   std::to_string(row.modules), row.tied ? "tied" : std::to_string(row.parameters),
                   human_bytes(row.bytes), row.source});
  }
  return "Contract (accumulation, softmax, norms and losses in float32 inside the operators)\n" + table.render(width);
}

std::string trained_text(const CheckReport& report) {
  const double share = report.learned_of == 0
                           ? 0.0
                           : 100.0 * static_cast<double>(report.trained) / static_cast<double>(report.learned_of);
  return fmt::format("Trained: {} of {} parameters of the student and its projectors ({:.3g} %)\n", report.trained,
                     report.learned_of, share);
}

std::string casts_text(const CheckReport& report, int width) {
  if (report.casts.empty()) return "Named casts: none\n";
  TextTable table({{"cast"}, {"from"}, {"to"}, {"in"}, {"count", Align::kRight}, {"bytes moved", Align::kRight}});
  for (const check::CastRow& row : report.casts) {
    table.add_row({row.place, row.from, row.to, row.phase, std::to_string(row.count), human_bytes(row.bytes)});
  }
  return "Named casts\n" + table.render(width);
}

std::string memory_text(const CheckReport& report, const recipe::Settings& settings, int width) {
  const std::string whose = report.ranks > 1 ? fmt::format("each of {} ranks", report.ranks) : "one rank";
  TextTable table({{"memory, " + whose}, {"bytes", Align::kRight}, {"", Align::kRight}});
  for (const check::MemoryRow& row : report.memory) {
    table.add_row({row.what, std::to_string(row.bytes), human_bytes(row.bytes)});
  }
  return fmt::format("Memory plan for a batch of {} x {} tokens\n", settings.integer("data.batch_size"),
                     settings.integer("data.sequence_length")) +
         table.render(width);
}

std::vector<std::string> violations_of(const CheckReport& report) {
  std::vector<std::string> violations = report.stored_wrongly;
  violations.insert(violations.end(), report.ran_wrongly.begin(), report.ran_wrongly.end());
  return violations;
}

}  // namespace

void print_check(const CheckReport& report, const recipe::Settings& settings, Console& console, int width) {
  console.result(modules_text(report, width));
  console.result(trained_text(report));
  console.result(casts_text(report, width));
  console.result(memory_text(report, settings, width));
}

nlohmann::ordered_json check_json(const CheckReport& report) {
  nlohmann::ordered_json json;
  json["modules"] = nlohmann::ordered_json::array();
  for (const check::ModuleRow& row : report.modules) {
    json["modules"].push_back({{"module", row.path},
                               {"role", row.role},
                               {"storage", row.storage},
                               {"in", row.input},
                               {"compute", row.compute},
                               {"out", row.output},
                               {"device", row.device},
                               {"modules", row.modules},
                               {"parameters", row.parameters},
                               {"tied", row.tied},
                               {"bytes", row.bytes},
                               {"from", row.source}});
  }
  json["casts"] = nlohmann::ordered_json::array();
  for (const check::CastRow& row : report.casts) {
    json["casts"].push_back({{"place", row.place},
                             {"from", row.from},
                             {"to", row.to},
                             {"phase", row.phase},
                             {"count", row.count},
                             {"bytes", row.bytes}});
  }
  json["trained_parameters"] = report.trained;
  json["ranks"] = report.ranks;
  for (const check::MemoryRow& row : report.memory) json["memory"][row.what] = row.bytes;
  json["peak_bytes"] = report.peak_bytes;
  json["checkpoint_copy_bytes"] = report.checkpoint_copy_bytes;
  json["operators"] = report.operators;
  json["violations"] = violations_of(report);
  return json;
}

void warn_of_frozen_codes(const CheckReport& report, const recipe::Settings& settings, Console& console) {
  if (settings.text("student.quantize") == "none" || objective::trains_adapter(settings)) return;
  console.warning(fmt::format(
      "student.quantize = {} {} without an adapter: quantized weights are frozen, and only {} of {} "
      "parameters train; add --adapter.kind=lora to train beside them",
      settings.text("student.quantize"), settings.where("student.quantize"), report.trained, report.learned_of));
}

void refuse_violations(const CheckReport& report, Console& console) {
  const std::vector<std::string> violations = violations_of(report);
  if (violations.empty()) return;
  for (size_t i = 0; i + 1 < violations.size(); ++i) console.warning(violations[i]);
  throw ContractError(violations.back() + fmt::format(" ({} violations in all)", violations.size()));
}

}  // namespace limbeck::cli
