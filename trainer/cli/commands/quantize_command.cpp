// limbeck quantize: a model's weights in 8 or 4 bits, as a folder that other programs load.
#include <fmt/format.h>

#include <map>

#include "modules/io/safetensors.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/policy.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {
namespace {

constexpr int64_t kFloatBytes = 4;

struct FormatSum {
  int64_t tensors = 0, values = 0, bytes = 0;
};

double ratio_of(int64_t values, int64_t bytes) {
  return bytes > 0 ? static_cast<double>(values * kFloatBytes) / static_cast<double>(bytes) : 0;
}

std::string plan_table(const std::map<std::string, FormatSum>& formats, const FormatSum& all, int width) {
  TextTable table({{"stored in"},
                   {"tensors", Align::kRight},
                   {"values", Align::kRight},
                   {"bytes", Align::kRight},
                   {"bits a value", Align::kRight},
                   {"of float32", Align::kRight}});
  const auto row = [&table](const std::string& name, const FormatSum& sum) {
    table.add_row({name, std::to_string(sum.tensors), std::to_string(sum.values), human_bytes(sum.bytes),
                   fmt::format("{:.3f}", 8.0 * static_cast<double>(sum.bytes) / static_cast<double>(sum.values)),
                   fmt::format("1/{:.2f}", ratio_of(sum.values, sum.bytes))});
  };
  for (const auto& [name, sum] : formats) row(name, sum);
  row("all", all);
  return table.render(width);
}

int64_t payload_of(const std::filesystem::path& folder) {
  const io::WeightsFolder weights(folder);
  int64_t bytes = 0;
  for (const std::string& name : weights.names()) {
    const io::TensorEntry& entry = *weights.find(name);
    bytes += static_cast<int64_t>(entry.end - entry.begin);
  }
  return bytes;
}

models::ModelRequest quantized_request(const recipe::Settings& settings) {
  if (settings.text("quantize") == "none" && settings.values("rule").empty()) {
    throw UsageError(
        "limbeck quantize: say in which format: --quantize=int4-sym for all linear weights of attention and MLP, or "
        "single "
        "modules by --rule='model.layers.0.** int8'; limbeck list quantizers shows the formats");
  }
  models::ModelRequest request = single_model(settings);
  for (const recipe::Value& rule : settings.values("rule"))
    request.rules.push_back(precision::parse_rule(rule.text, rule.origin.to_string()));
  return request;
}

void run_quantize(Invocation& call) {
  const auto& settings = call.settings;
  const auto folder = settings.required_path("output");
  if (settings.given("adapter")) {
    throw UsageError(
        "limbeck quantize takes a model without an adapter: make it part of the model first (limbeck merge)");
  }
  models::ModelRequest request = quantized_request(settings);
  const models::BuiltModel built_on_meta = models::build_on_meta(request);
  const models::PackedPlan plan = models::plan_packed(built_on_meta);
  std::map<std::string, FormatSum> formats;
  FormatSum all;
  for (const auto& tensor : plan.tensors) {
    for (FormatSum* sum : {&formats[tensor.format], &all}) {
      ++sum->tensors;
      sum->values += tensor.values;
      sum->bytes += tensor.bytes;
    }
  }
  call.console.note(
      fmt::format("planned, in the layout of {}:\n{}", plan.layout, plan_table(formats, all, call.width)));

  // As the folder stores them: the codes are chosen by the scales that others will read.
  const at::ScalarType dtype = built_on_meta.policy->stream_dtype();
  request.scales = dtype;
  const models::BuiltModel built = models::load_model(request);
  report_load(built, call.console);
  models::SaveOptions options;
  options.packed = true;
  models::save_model(built, folder, options);

  const int64_t bytes = payload_of(folder);
  call.result["layout"] = plan.layout;
  call.result["dtype"] = precision::dtype_name(dtype);
  for (const auto& [name, sum] : formats) {
    call.result["formats"][name] = {{"tensors", sum.tensors}, {"values", sum.values}, {"bytes", sum.bytes}};
  }
  call.result["values"] = all.values;
  call.result["float32_bytes"] = all.values * kFloatBytes;
  call.result["planned_bytes"] = all.bytes;
  call.result["bytes"] = bytes;
  call.result["compression_ratio"] = ratio_of(all.values, bytes);
  call.result["output"] = folder.string();
  call.console.result(fmt::format(
      "{}: {} of weights, everything counted, 1/{:.2f} of float32; layout {}, loaded by {}", folder.string(),
      human_bytes(bytes), ratio_of(all.values, bytes), plan.layout,
      plan.layout == "bitsandbytes" ? "transformers with bitsandbytes" : "transformers with compressed-tensors"));
}

void declare_quantize(recipe::OptionTable& table) {
  declare_single_model(table);
  table.add({.name = "rule",
             .kind = recipe::OptionKind::kList,
             .help = "The format of single modules, such as \"model.layers.0.** int8\", or a dtype, which leaves them "
                     "floats; may be repeated, the last one that matches wins.",
             .value_name = "\"PATTERN FORMAT\"",
             .flag_only = true});
  declare_output_folder(table);
}

}  // namespace

Command quantize_command() {
  return {.name = "quantize",
          .summary = "A model's weights in 8 or 4 bits, as a folder that other programs load.",
          .example = "limbeck quantize --model models/base --quantize int4-sym --output models/base-int4",
          .computes = true,
          .declare = declare_quantize,
          .run = run_quantize};
}

}  // namespace limbeck::cli
