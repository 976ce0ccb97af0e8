// limbeck check: the contract, the casts and the memory plan of a recipe, without reading a weight.
#include <fmt/format.h>

#include <chrono>

#include "trainer/cli/commands/check_report.h"
#include "trainer/cli/commands/command.h"

namespace limbeck::cli {
namespace {

void run_check(Invocation& call) {
  const auto begin = std::chrono::steady_clock::now();
  const bool many = call.settings.given("parallel.world_size");
  const check::CheckReport report = check::dry_run(
      call.settings, call.registries, many ? static_cast<int>(call.settings.integer("parallel.world_size")) : 1);
  for (const std::string& line : report.notes) call.console.note(line);
  print_check(report, call.settings, call.console, call.width);
  call.result = check_json(report);
  refuse_violations(report, call.console, call.speaks);
  warn_of_frozen_codes(report, call.settings, call.console);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  call.console.result(
      fmt::format("{} {} operators of update, evaluation and generation ran on meta in {:.2f} s; no weight read",
                  call.console.good_result("passed:"), report.operators, seconds));
}

}  // namespace

Command check_command() {
  return {.name = "check",
          .summary = "The dtype contract, the casts and the memory plan of a recipe; no weights read.",
          .example = "limbeck check recipes/check_small.ini --student.dtype=bfloat16",
          .takes_recipe = true,
          .run = run_check};
}

}  // namespace limbeck::cli
