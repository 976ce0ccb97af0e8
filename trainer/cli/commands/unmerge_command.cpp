// limbeck unmerge: a merged adapter taken out of its model, as a Hugging Face folder.
#include <fmt/format.h>

#include <algorithm>

#include "modules/adapters/merge/unmerge.h"
#include "modules/errors.h"
#include "modules/models/weights/save_model.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/model_options.h"

namespace limbeck::cli {
namespace {

using adapters::UnmergedModule;

void run_unmerge(Invocation& call) {
  const auto& settings = call.settings;
  const auto folder = settings.required_path("output");
  settings.required_path("adapter");
  if (settings.text("quantize") != "none") {
    throw UsageError(
        fmt::format("limbeck unmerge --quantize={}: an adapter is taken out of float weights alone: leave --quantize "
                    "out, and give it to what reads the result",
                    settings.text("quantize")));
  }
  models::BuiltModel built = models::load_model(single_model(settings));
  report_load(built, call.console);
  const auto loaded = load_named_adapter(settings, built, {.merged = true}, call.console);
  const std::vector<UnmergedModule> modules = adapters::unmerge_adapter(built);
  models::save_model(built, folder);
  const std::string dtype = precision::dtype_name(built.policy->stream_dtype());
  const auto worst = std::max_element(modules.begin(), modules.end(),
                                      [](const auto& one, const auto& other) { return one.bound < other.bound; });
  call.result["adapter"] = adapters::kind_name(loaded->config);
  call.result["dtype"] = dtype;
  for (const UnmergedModule& one : modules) {
    call.result["modules"][one.module] = {{"rounding", one.rounding}, {"bound", one.bound}};
  }
  call.result["worst_bound"] = worst->bound;
  call.result["worst_module"] = worst->module;
  call.result["output"] = folder.string();
  call.console.result(fmt::format(
      "{} taken out of {} modules: {}; rounding to {} leaves {} the farthest from the base that limbeck merge "
      "had: by {:.1e} of its size at most",
      adapters::kind_name(loaded->config), modules.size(), folder.string(), dtype, worst->module, worst->bound));
}

void declare_unmerge(recipe::OptionTable& table) {
  declare_single_model(table);
  declare_output_folder(table);
}

}  // namespace

Command unmerge_command() {
  return {.name = "unmerge",
          .summary = "A merged LoRA or IA3 adapter taken out of its model again.",
          .example = "limbeck unmerge --model models/merged --adapter runs/mine/best --output models/base",
          .computes = true,
          .declare = declare_unmerge,
          .run = run_unmerge};
}

}  // namespace limbeck::cli
