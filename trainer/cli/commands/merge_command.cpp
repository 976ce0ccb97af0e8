// limbeck merge: an adapter made part of its model, as a Hugging Face folder.
#include <fmt/format.h>

#include "modules/adapters/merge/merge.h"
#include "modules/adapters/merge/merge_quantized.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/contract_modules.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {
namespace {

using adapters::MergeInto;

// What the choice is between; nothing is taken for granted, because each gives another model.
constexpr const char* kWays =
    "--into=original (the adapter on the folder's own weights), --into=dequantized (on what the codes stand for, where "
    "it was trained) or --into=requantized (that sum quantized again)";

// `packed`: the folder's own weights are codes.
void check_choice(const recipe::Settings& settings, bool packed) {
  const std::string& format = settings.text("quantize");
  if (settings.enabled("packed") && settings.text("into") != "requantized") {
    throw UsageError(
        "limbeck merge --packed stores the codes that --into=requantized makes: take that way, or leave --packed out");
  }
  if (packed && (!settings.given("into") || settings.text("into") == "original")) {
    throw UsageError(fmt::format(
        "limbeck merge of {}, whose weights are packed: say what becomes of them: --into=dequantized (the adapter on "
        "what the codes stand for, where it was trained) or --into=requantized (that sum quantized again)",
        settings.required_path("model").string()));
  }
  if (packed) return;
  if (format == "none" && settings.given("into")) {
    throw UsageError(
        fmt::format("limbeck merge --into={} without --quantize: the adapter is merged into the folder's own weights: "
                    "leave --into out, or say beside which codes it was trained (--quantize=nf4)",
                    settings.text("into")));
  }
  if (format != "none" && !settings.given("into")) {
    throw UsageError(fmt::format(
        "limbeck merge --quantize={} without --into: say what becomes of the weights: {}; what each of them "
        "loses is printed whichever is taken",
        format, kWays));
  }
}

nlohmann::ordered_json share_json(const adapters::ModuleShare& share) {
  return {{"mean", share.mean}, {"worst", share.worst}, {"worst_module", share.worst_module}};
}

std::string error_table(const adapters::QuantizedMergeReport& report, MergeInto into, int width) {
  TextTable table({{"into"},
                   {"of the weight", Align::kRight},
                   {"worst", Align::kRight},
                   {"in"},
                   {"of the change", Align::kRight},
                   {"worst", Align::kRight},
                   {"in"}});
  const auto number = [](double share) { return fmt::format("{:.2e}", share); };
  for (const MergeInto way : adapters::kMergeWays) {
    const auto& [weight, change] = report.of(way);
    table.add_row({std::string(adapters::merge_into_name(way)) + (way == into ? " *" : ""), number(weight.mean),
                   number(weight.worst), weight.worst_module, number(change.mean), number(change.worst),
                   change.worst_module});
  }
  return table.render(width);
}

// What the written folder is. `layout`: of its codes; "": it has none.
std::string said_of(MergeInto into, const std::string& format, const std::string& dtype, const std::string& layout) {
  if (!layout.empty())
    return fmt::format("new {} codes of the sum, in the layout of {}, the rest in {}", format, layout, dtype);
  switch (into) {
    case MergeInto::kOriginal:
      return fmt::format("the folder's own weights with the adapter, in {}", dtype);
    case MergeInto::kDequantized:
      return fmt::format("what the {} codes stand for, with the adapter, in {}", format, dtype);
    case MergeInto::kRequantized:
      return fmt::format(
          "what new {0} codes of the sum stand for, in {1} and not packed: --quantize={0} packs them "
          "while they are read, and --packed stores them",
          format, dtype);
  }
  return "";
}

// Of its packed weights; of several, those of the first module.
std::string format_of(const models::BuiltModel& model) {
  for (const auto& module : precision::contract_modules(*model.model)) {
    if (!module->packed_weights().empty()) return precision::storage_name(module->precision());
  }
  return "none";
}

// A copy to be filled with new codes, whose scales are as the folder will store them; what no folder can hold is
// refused before anything is merged.
models::BuiltModel copy_for_codes(models::ModelRequest request) {
  const models::BuiltModel structure = models::build_on_meta(request);
  models::plan_packed(structure);
  models::refuse_shorter_last_groups(structure);
  request.scales = structure.policy->stream_dtype();
  return models::load_model(request);
}

void merge_quantized(Invocation& call, const std::filesystem::path& folder) {
  const auto& settings = call.settings;
  const MergeInto into = adapters::merge_into_named(settings.text("into"));
  models::ModelRequest request = single_model(settings);
  std::optional<models::BuiltModel> packed;
  if (settings.enabled("packed")) packed = copy_for_codes(request);
  models::BuiltModel quantized = models::load_model(request);
  report_load(quantized, call.console);
  const auto loaded = load_named_adapter(settings, quantized, {}, call.console);
  const std::string format = format_of(quantized);
  request.packing = {};
  request.unpacked = true;
  models::BuiltModel plain = models::load_model(request);
  const auto report = adapters::merge_quantized_adapter(quantized, plain, into, packed ? &*packed : nullptr);
  models::SaveOptions options;
  options.packed = packed.has_value();
  const std::string layout = packed ? models::plan_packed(*packed).layout : "";
  models::save_model(packed ? *packed : plain, folder, options);
  const std::string dtype = precision::dtype_name(plain.policy->stream_dtype());
  call.result["adapter"] = adapters::kind_name(loaded->config);
  call.result["modules"] = report.modules + report.float_modules;
  call.result["quantized_modules"] = report.modules;
  call.result["quantize"] = format;
  call.result["into"] = settings.text("into");
  call.result["dtype"] = dtype;
  if (packed) call.result["layout"] = layout;
  for (const MergeInto way : adapters::kMergeWays) {
    call.result["errors"][adapters::merge_into_name(way)] = {{"of_weight", share_json(report.of(way).of_weight)},
                                                             {"of_change", share_json(report.of(way).of_change)}};
  }
  call.result["output"] = folder.string();
  call.console.result(
      fmt::format("{}{} merged into {} quantized modules and {} others: {} holds {} (*). Errors: beside what the "
                  "adapter was trained "
                  "with, as a share of the weight and of the adapter's own change; above 1, more is lost than it does",
                  error_table(report, into, call.width), adapters::kind_name(loaded->config), report.modules,
                  report.float_modules, folder.string(), said_of(into, format, dtype, layout)));
}

void merge_float(Invocation& call, const std::filesystem::path& folder) {
  const auto& settings = call.settings;
  models::BuiltModel built = models::load_model(single_model(settings));
  report_load(built, call.console);
  const auto loaded = load_named_adapter(settings, built, {}, call.console);
  const adapters::MergeReport report = adapters::merge_adapter(built).report();
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

void run_merge(Invocation& call) {
  const auto& settings = call.settings;
  const auto folder = settings.required_path("output");
  settings.required_path("adapter");
  const bool packed = models::read_model_config(settings.required_path("model")).layout != nullptr;
  check_choice(settings, packed);
  packed || settings.text("quantize") != "none" ? merge_quantized(call, folder) : merge_float(call, folder);
}

void declare_merge(recipe::OptionTable& table) {
  std::vector<std::string> ways;
  for (const MergeInto way : adapters::kMergeWays) ways.push_back(adapters::merge_into_name(way));
  declare_single_model(table);
  table.add(
      {.name = "into",
       .kind = recipe::OptionKind::kChoice,
       .help = "With --quantize, or of a folder of packed weights, what the adapter becomes part of: the folder's own "
               "weights; what the codes stand for; or that sum, quantized again.",
       .words = ways,
       .flag_only = true});
  table.add({.name = "packed",
             .kind = recipe::OptionKind::kSwitch,
             .help =
                 "With --into=requantized: the new codes themselves, as limbeck quantize writes them, instead of what "
                 "they stand for.",
             .flag_only = true});
  declare_output_folder(table);
}

}  // namespace

Command merge_command() {
  return {.name = "merge",
          .summary = "An adapter made part of its model, as a Hugging Face folder.",
          .example = "limbeck merge --model models/base --adapter runs/mine/best --output models/merged",
          .computes = true,
          .declare = declare_merge,
          .run = run_merge};
}

}  // namespace limbeck::cli
