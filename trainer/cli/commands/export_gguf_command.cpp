// limbeck export-gguf: a model as one file that llama.cpp and what is built on it load.
#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/gguf/export_gguf.h"
#include "modules/gguf/llama_cpp_model.h"
#include "modules/gguf/vocabulary.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/commands/quantize_tables.h"

namespace limbeck::cli {
namespace {

using recipe::OptionKind;

models::ModelRequest exported_model(const recipe::Settings& settings) {
  if (settings.given("adapter")) {
    throw UsageError(
        "limbeck export-gguf takes a model without an adapter: make it part of the model first (limbeck merge)");
  }
  models::ModelRequest request = single_model(settings);
  request.rules = rules_of_model(settings);
  request.scales = at::kHalf;  // of codes that are made here: as the file stores them
  return request;
}

gguf::Vocabulary vocabulary_of(const recipe::Settings& settings, const models::BuiltModel& built) {
  if (settings.enabled("without-tokenizer")) {
    for (const char* name : {"tokenizer", "pre-tokenizer"}) {
      if (!settings.given(name)) continue;
      throw UsageError(fmt::format("limbeck export-gguf: --{} and --without-tokenizer: leave one of them out", name));
    }
    return gguf::no_vocabulary();
  }
  const auto folder = settings.given("tokenizer") ? settings.path("tokenizer") : settings.required_path("model");
  return gguf::read_vocabulary(folder, built.config.architecture, settings.text("pre-tokenizer"));
}

quantize::FolderPlan as_stored(const std::vector<gguf::PlannedTensor>& tensors) {
  quantize::FolderPlan plan;
  for (const gguf::PlannedTensor& tensor : tensors)
    plan.tensors.push_back({tensor.name, io::traits_of(tensor.type).name, tensor.values, tensor.bytes});
  return plan;
}

void tell_bounded_context(const models::BuiltModel& built, Console& console) {
  const gguf::LlamaCppModel words(built.config.architecture, built.config.folder.string());
  if (!words.window_bounds_context()) return;
  console.warning(fmt::format(
      "llama.cpp's {} knows no sliding windows: the file says a context of {} tokens, the window, within which both "
      "compute the same (the model has positions for {})",
      words.architecture_name(), words.context_length(), built.config.architecture.max_positions));
}

void tell_changes(const gguf::ExportReport& report, Invocation& call) {
  call.result["scale_change"] = report.scale_change;
  call.result["minimum_change"] = report.minimum_change;
  call.result["widened"] = report.widened;
  if (report.widened > 0) {
    call.console.warning(
        fmt::format("{} weights of 2 or 3 bits are in Q4_0 or Q4_1, 4.5 or 5 bits a weight: GGUF's types of fewer bits "
                    "round scales to 4 or 6 bits and cannot hold these codes. For a smaller file let llama.cpp "
                    "quantize the float model (limbeck export-gguf of that one, then llama-quantize to Q3_K or Q2_K)",
                    report.widened));
  }
  if (report.scale_change > 0.0) {
    call.console.warning(
        fmt::format("scales are rounded to float16, by {:.2g} of themselves at most ({}): the codes are the same, and "
                    "what they stand for differs by as much",
                    report.scale_change, report.scale_of));
  }
  if (report.minimum_change > 0.0) {
    call.console.warning(
        fmt::format("blocks of Q4_1 say what their lowest code stands for in float16, which moves all values of a "
                    "block by {:.2g} of the step between codes at most ({})",
                    report.minimum_change, report.minimum_of));
  }
  if (report.scale_change == 0.0 && report.minimum_change == 0.0)
    call.console.note("what the file stands for is what the model computes with here, to the bit");
}

void run_export_gguf(Invocation& call) {
  const auto& settings = call.settings;
  const auto file = settings.required_path("output");
  const models::ModelRequest request = exported_model(settings);
  const models::BuiltModel built_on_meta = models::build_on_meta(request);
  const quantize::FolderPlan plan = as_stored(gguf::plan_gguf(built_on_meta));
  const gguf::Vocabulary vocabulary = vocabulary_of(settings, built_on_meta);
  for (const std::string& line : vocabulary.warnings) call.console.warning(line);
  tell_bounded_context(built_on_meta, call.console);
  call.console.note("planned:\n" + plan_table(plan, call.width));

  const models::BuiltModel built = models::load_model(request);
  report_load(built, call.console);
  const gguf::ExportReport report = gguf::export_gguf(built, file, vocabulary.metadata);
  tell_changes(report, call);
  call.result.update(plan_json(plan));
  call.result["warnings"] = vocabulary.warnings;
  call.result["output"] = file.string();
  int64_t bytes = 0;
  for (const auto& tensor : plan.tensors) bytes += tensor.bytes;
  call.console.result(fmt::format("{}: {} of weights, 1/{:.2f} of float32; loaded by llama.cpp", file.string(),
                                  human_bytes(bytes), ratio_to_float32(call.result["values"].get<int64_t>(), bytes)));
}

void declare_export_gguf(recipe::OptionTable& table) {
  declare_single_model(table);
  table.add({.name = "rule",
             .kind = OptionKind::kList,
             .help = "What single modules are stored in, such as \"model.layers.0.** int8\", or a dtype, which makes "
                     "them floats; may be repeated, the last one that matches wins. Of a quantized folder the codes of "
                     "these modules are made anew.",
             .value_name = "\"PATTERN FORMAT\"",
             .flag_only = true});
  table.group("Tokenizer");
  table.add({.name = "tokenizer",
             .kind = OptionKind::kPath,
             .help = "Folder with a tokenizer.json, when it is not the model's own.",
             .value_name = "DIR",
             .flag_only = true});
  table.add({.name = "pre-tokenizer",
             .kind = OptionKind::kText,
             .help = "llama.cpp's name for how a text is cut into words, where limbeck does not find it.",
             .value_name = "NAME",
             .flag_only = true});
  table.add({.name = "without-tokenizer",
             .kind = OptionKind::kSwitch,
             .help = "Write no tokenizer: the file is used by ids alone.",
             .flag_only = true});
  table.group("Result");
  table.add({.name = "output",
             .kind = OptionKind::kPath,
             .help = "The GGUF file to write, new or to be replaced.",
             .value_name = "FILE",
             .writes = recipe::Writes::kFile,
             .flag_only = true});
}

}  // namespace

Command export_gguf_command() {
  return {.name = "export-gguf",
          .summary = "A model, float or quantized, as one GGUF file that llama.cpp loads.",
          .example = "limbeck export-gguf --model models/base-int4 --output models/base-int4.gguf",
          .computes = true,
          .declare = declare_export_gguf,
          .run = run_export_gguf};
}

}  // namespace limbeck::cli
