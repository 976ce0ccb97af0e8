// limbeck merge: an adapter made part of its model, as a Hugging Face folder.
#include <fmt/format.h>

#include "modules/adapters/merge.h"
#include "modules/models/save_model.h"
#include "trainer/cli/command.h"
#include "trainer/cli/model_options.h"

namespace limbeck::cli {
namespace {

void run_merge(Invocation& call) {
  const auto& settings = call.settings;
  const auto folder = settings.required_path("output");
  settings.required_path("adapter");
  if (settings.text("quantize") != "none") {
    throw UsageError(
        fmt::format("limbeck merge --quantize={}: an adapter is merged into float weights alone: leave "
                    "--quantize out, and give it to what reads the merged model",
                    settings.text("quantize")));
  }
  models::BuiltModel built = models::load_model(single_model(settings));
  report_load(built, call.console);
  const auto loaded = load_named_adapter(settings, built, /*trainable=*/false, call.console);
  const adapters::MergeReport report = adapters::merge_adapter(built);
  models::save_model(built, folder);
  const std::string dtype = precision::dtype_name(built.policy->stream_dtype());
  call.result["adapter"] = adapters::kind_name(loaded->config);
  call.result["modules"] = report.modules;
  call.result["dtype"] = dtype;
  call.result["worst_error"] = report.worst_error;
  call.result["worst_module"] = report.worst_module;
  call.result["output"] = folder.string();
  call.console.result(
      fmt::format("{} merged into {} modules of {}; rounding to {} changed {} the most, by {:.1e} of its "
                  "size",
                  adapters::kind_name(loaded->config), report.modules, folder.string(), dtype, report.worst_module,
                  report.worst_error));
}

void declare_merge(recipe::OptionTable& table) {
  declare_single_model(table);
  table.group("Result");
  table.add({.name = "output",
             .kind = recipe::OptionKind::kPath,
             .help = "The Hugging Face folder to write; must not exist yet, or be empty.",
             .value_name = "DIR",
             .flag_only = true});
}

}  // namespace

Command merge_command() {
  return {.name = "merge",
          .summary = "An adapter made part of its model, as a Hugging Face folder.",
          .computes = true,
          .declare = declare_merge,
          .run = run_merge};
}

}  // namespace limbeck::cli
