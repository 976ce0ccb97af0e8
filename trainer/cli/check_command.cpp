// limbeck check: the contract, the casts and the memory plan of a recipe, without reading a weight.
#include <fmt/format.h>

#include <chrono>

#include "modules/errors.h"
#include "trainer/check/dry_run.h"
#include "trainer/cli/command.h"
#include "trainer/cli/text_table.h"

namespace limbeck::cli {
namespace {

using check::CheckReport;

std::string human_bytes(int64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1024.0 && unit < 4) value /= 1024.0, ++unit;
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, units[unit]);
}

std::string source_of(const recipe::Settings& settings, const std::string& key) {
  return settings.given(key) ? settings.origin(key).to_string() : "default";
}

std::optional<models::ModelRequest> model_request(const recipe::Settings& settings, const std::string& role) {
  if (!settings.given(role + ".model")) return std::nullopt;
  models::ModelRequest request;
  request.folder = settings.path(role + ".model");
  request.root = role;
  request.dtype = settings.dtype(role + ".dtype");
  request.dtype_source = source_of(settings, role + ".dtype");
  const auto device = settings.device(role + ".device");
  request.device = device ? *device : *settings.device("device");
  request.trainable = role == "student";
  for (const recipe::Value& rule : settings.values("precision.rule")) {
    request.rules.push_back(precision::parse_rule(rule.text, rule.origin.to_string()));
  }
  return request;
}

check::CheckRequest check_request(const recipe::Settings& settings) {
  check::CheckRequest request;
  request.teacher = model_request(settings, "teacher");
  request.student = model_request(settings, "student");
  if (!request.teacher && !request.student) {
    throw UsageError(
        "limbeck check: the recipe names no model: set student.model (and teacher.model) to a folder with "
        "a config.json");
  }
  if (settings.text("projector.kind") == "logit") {
    request.projector =
        check::ProjectorRequest{settings.text("projector.dtype") == "float32", source_of(settings, "projector.dtype")};
  }
  request.batch = settings.integer("data.batch_size");
  request.length = settings.integer("data.sequence_length");
  request.new_tokens = settings.integer("generation.max_new_tokens");
  return request;
}

void print_modules(const CheckReport& report, Invocation& call) {
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
  auto json = nlohmann::ordered_json::array();
  for (const check::ModuleRow& row : report.modules) {
    table.add_row({row.path, row.role, row.storage, row.input, row.compute, row.output, row.device,
                   std::to_string(row.modules), std::to_string(row.parameters), human_bytes(row.bytes), row.source});
    json.push_back({{"module", row.path},
                    {"role", row.role},
                    {"storage", row.storage},
                    {"in", row.input},
                    {"compute", row.compute},
                    {"out", row.output},
                    {"device", row.device},
                    {"modules", row.modules},
                    {"parameters", row.parameters},
                    {"bytes", row.bytes},
                    {"from", row.source}});
  }
  call.console.result("Contract (accumulation, softmax, norms and losses in float32 inside the operators)\n" +
                      table.render(call.width));
  call.result["modules"] = json;
}

void print_casts(const CheckReport& report, Invocation& call) {
  TextTable table({{"cast"}, {"from"}, {"to"}, {"in"}, {"count", Align::kRight}, {"bytes moved", Align::kRight}});
  auto json = nlohmann::ordered_json::array();
  for (const check::CastRow& row : report.casts) {
    table.add_row({row.place, row.from, row.to, row.phase, std::to_string(row.count), human_bytes(row.bytes)});
    json.push_back({{"place", row.place},
                    {"from", row.from},
                    {"to", row.to},
                    {"phase", row.phase},
                    {"count", row.count},
                    {"bytes", row.bytes}});
  }
  call.console.result(report.casts.empty() ? "Named casts: none\n" : "Named casts\n" + table.render(call.width));
  call.result["casts"] = json;
}

void print_memory(const CheckReport& report, const check::CheckRequest& request, Invocation& call) {
  TextTable table({{"memory, one rank"}, {"bytes", Align::kRight}, {"", Align::kRight}});
  nlohmann::ordered_json json;
  for (const check::MemoryRow& row : report.memory) {
    table.add_row({row.what, std::to_string(row.bytes), human_bytes(row.bytes)});
    json[row.what] = row.bytes;
  }
  call.console.result(fmt::format("Memory plan for a batch of {} x {} tokens\n", request.batch, request.length) +
                      table.render(call.width));
  call.result["memory"] = json;
}

void run_check(Invocation& call) {
  const auto begin = std::chrono::steady_clock::now();
  const check::CheckRequest request = check_request(call.settings);
  const CheckReport report = check::dry_run(request);
  print_modules(report, call);
  print_casts(report, call);
  print_memory(report, request, call);
  std::vector<std::string> violations = report.stored_wrongly;
  violations.insert(violations.end(), report.ran_wrongly.begin(), report.ran_wrongly.end());
  call.result["operators"] = report.operators;
  call.result["violations"] = violations;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (violations.empty()) {
    call.console.result(
        fmt::format("passed: {} operators of the training step, the evaluation and generation ran on "
                    "meta in {:.2f} s; no weight was read",
                    report.operators, seconds));
    return;
  }
  for (size_t i = 0; i + 1 < violations.size(); ++i) call.console.warning(violations[i]);
  throw ContractError(violations.back() + fmt::format(" ({} violations in all)", violations.size()));
}

}  // namespace

Command check_command() {
  return {.name = "check",
          .summary = "The dtype contract, the casts and the memory plan of a recipe; no weights read.",
          .takes_recipe = true,
          .run = run_check};
}

}  // namespace limbeck::cli
