// limbeck profile: a recipe's student in each precision, on each device: latency, memory, bytes, quality, energy.
#include <fmt/format.h>

#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/profile_tables.h"
#include "trainer/loop/run_folder.h"
#include "trainer/profile/profile.h"

namespace limbeck::cli {
namespace {

constexpr size_t kModulesShown = 12;

// The folder is made before hours of measuring, and the report is written last: who finds it finds all.
void write_profile(const loop::RunFolder& folder, const profile::Profile& profile) {
  folder.write_text("trace.json", profile.trace.dump() + "\n");
  folder.write_text("profile.csv", profile::csv_of(profile.report));
  folder.write_text("profile.json", profile.report.dump(2) + "\n");
}

void run_profile_command(Invocation& call) {
  profile::read_profile_options(call.settings);
  warn_of_untrained_head(call, call.settings);
  std::unique_ptr<loop::RunFolder> folder;
  if (!call.settings.text("run").empty()) folder = std::make_unique<loop::RunFolder>(call.settings, /*owner=*/true);
  const profile::Profile profile =
      profile::run_profile({.settings = call.settings,
                            .registries = call.registries,
                            .tick = [&](const std::string& row, int64_t number, int64_t all) {
                              call.console.note(fmt::format("[{}/{}] {}", number + 1, all, row));
                            }});
  call.result = profile.report;
  if (folder) write_profile(*folder, profile);
  call.console.result(machine_text(profile.report));
  call.console.result(profile_table(profile.report, call.width));
  if (const std::string passes = passes_lines(profile.report); !passes.empty()) call.console.result(passes);
  const std::string refused = refused_table(profile.report, call.width);
  if (!refused.empty()) call.console.result(refused);
  const std::string modules = module_times_table(profile.report, call.width, kModulesShown);
  if (!modules.empty()) call.console.result(modules);
  if (folder)
    call.console.result(fmt::format("{0}/profile.json, profile.csv, and trace.json for https://ui.perfetto.dev",
                                    folder->path().string()));
}

}  // namespace

// It computes in processes of its own, which must be forked before anything has computed here.
Command profile_command() {
  return {
      .name = "profile",
      .summary = "A student's latency, memory, bytes, quality and energy in each precision on each device.",
      .example = "limbeck profile my.ini --precisions=float32,bfloat16,int8-dynamic --work=forward --run=runs/profile",
      .takes_recipe = true,
      .run = run_profile_command};
}

}  // namespace limbeck::cli
