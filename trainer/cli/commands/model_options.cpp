#include "trainer/cli/commands/model_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "modules/errors.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_modules.h"
#include "modules/quantization/quantized_formats.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::cli {

using recipe::OptionKind;

void declare_single_model(recipe::OptionTable& table) {
  table.group("Model");
  table.add({.name = "model",
             .kind = OptionKind::kPath,
             .help = "Hugging Face folder (config.json and safetensors), or ORG/NAME[@REVISION] in the local cache.",
             .value_name = "DIR",
             .flag_only = true,
             .on_hub = true});
  table.add({.name = "dtype",
             .kind = OptionKind::kDtype,
             .fallback = "auto",
             .help = "Dtype of the run; weights in another one are converted at loading. auto: config.json's.",
             .words = {"auto", "float32", "bfloat16", "float16", "float64"},
             .flag_only = true});
  table.add({.name = "quantize",
             .kind = OptionKind::kChoice,
             .fallback = "none",
             .help =
                 "Linear weights of attention and MLP and experts in 8 to 2 bits, quantized one by one while they are "
                 "read: none, "
                 "or a format of 'limbeck list quantizers'.",
             .words = recipe::none_or(quantization::quantized_formats()),
             .value_name = "FORMAT",
             .flag_only = true});
  recipe::Option activations = recipe::bk_activations_option("bk-activations");
  activations.flag_only = true;
  table.add(std::move(activations));
  table.add(
      {.name = "adapter",
       .kind = OptionKind::kPath,
       .help =
           "PEFT folder of a LoRA, DoRA or IA3 adapter, or an NPT folder, for this model; it computes in its dtype.",
       .value_name = "DIR",
       .flag_only = true});
  table.add({.name = "allow-nonfinite",
             .kind = OptionKind::kSwitch,
             .help = "Let NaN and infinity through, in weights that are read and in results of forward and generate.",
             .flag_only = true});
}

void declare_output_folder(recipe::OptionTable& table) {
  table.group("Result");
  table.add({.name = "output",
             .kind = OptionKind::kPath,
             .help = "The Hugging Face folder to write; must not exist yet, or be empty.",
             .value_name = "DIR",
             .writes = recipe::Writes::kFolder,
             .flag_only = true});
}

at::Tensor integer_input(const std::filesystem::path& file, const std::string& name, const at::Tensor& tensor) {
  if (!at::isFloatingType(tensor.scalar_type()) && !at::isComplexType(tensor.scalar_type())) {
    return precision::integers(tensor, at::kLong);
  }
  throw InputDataError(fmt::format("{}: tensor {} is {}, wanted integers such as int64", file.string(), name,
                                   precision::dtype_name(tensor.scalar_type())));
}

models::ModelRequest single_model(const recipe::Settings& settings) {
  models::ModelRequest request;
  request.folder = settings.required_path("model");
  request.dtype = settings.dtype("dtype");
  request.dtype_source = "--dtype";
  request.device = *settings.device("device");
  const std::string& format = settings.text("quantize");
  if (format != "none") request.packing = precision::pack_all(kernels::format_named(format), "--quantize");
  const std::string& activations = settings.text("bk-activations");
  if (activations != "auto") request.resolvents = {activations == "int8", "--bk-activations=" + activations};
  request.allow_nonfinite = settings.enabled("allow-nonfinite");
  return request;
}

std::vector<precision::Rule> rules_of_model(const recipe::Settings& settings) {
  std::vector<precision::Rule> rules;
  for (const recipe::Value& rule : settings.values("rule")) {
    rules.push_back(precision::parse_rule(rule.text, rule.origin.to_string()));
    // What a recipe says of its student holds for that model by itself.
    std::string& pattern = rules.back().pattern;
    if (pattern.starts_with("student.")) pattern.replace(0, std::string("student").size(), "model");
  }
  precision::require_roots(rules, {"model"});
  return rules;
}

std::optional<adapters::LoadedAdapter> load_named_adapter(const recipe::Settings& settings, models::BuiltModel& built,
                                                          adapters::AdapterRequest request, Console& console) {
  if (!settings.given("adapter")) return std::nullopt;
  request.folder = settings.required_path("adapter");
  auto loaded = adapters::load_adapter(built, request);
  console.note(fmt::format("{} adapter on {} modules{}", adapters::kind_name(loaded.config), loaded.modules,
                           loaded.cast_tensors == 0 ? ""
                                                    : fmt::format(", {} tensors were converted to the dtype of their "
                                                                  "modules",
                                                                  loaded.cast_tensors)));
  return loaded;
}

namespace {
std::map<std::string, int64_t> packed_counts(const models::Transformer& model) {
  std::map<std::string, int64_t> counts;
  for (const auto& module : precision::contract_modules(model)) {
    for (const auto& [name, weight] : module->packed_weights())
      counts[kernels::format_name(weight.format())] += std::max<int64_t>(weight.count(), 1);
  }
  return counts;
}
}  // namespace

void report_load(const models::BuiltModel& built, Console& console) {
  const models::LoadReport& report = built.report;
  for (const std::string& note : report.notes) console.warning(note);
  if (report.cast_tensors > 0) {
    console.note(fmt::format("{} tensors were converted to {} at loading", report.cast_tensors,
                             precision::dtype_name(built.policy->stream_dtype())));
  }
  for (const auto& [format, count] : packed_counts(*built.model)) {
    console.note(fmt::format("{} linear weights were quantized to {}", count, format));
  }
  if (!report.ignored.empty()) {
    console.note(fmt::format("left aside, of no use to a {} model: {}", built.config.architecture.family,
                             fmt::join(report.ignored, ", ")));
  }
}

data::DataRequest rows_in_order(const recipe::Settings& settings, const models::BuiltModel& built, int64_t batch_size) {
  data::DataRequest request;
  request.folder = settings.required_path("data");
  request.origin = "data " + settings.where("data");
  request.batch_size = batch_size;
  request.sequence_length = settings.integer("sequence-length");
  request.packing = settings.text("packing") == "packed" ? data::Packing::kPacked : data::Packing::kPadded;
  request.long_documents = data::LongDocuments::kSplit;
  request.shuffle = false;
  request.whole_epoch = true;
  request.student_vocabulary = built.config.architecture.vocabulary;
  return request;
}

}  // namespace limbeck::cli
