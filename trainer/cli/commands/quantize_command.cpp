// limbeck quantize: a model's weights in 8 or 4 bits, as a folder that other programs load.
#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/io/safetensors.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/contract_modules.h"
#include "modules/precision/policy.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/commands/quantize_measured.h"
#include "trainer/quantize/static_policy.h"

namespace limbeck::cli {
namespace {

int64_t payload_of(const std::filesystem::path& folder) {
  const io::WeightsFolder weights(folder);
  int64_t bytes = 0;
  for (const std::string& name : weights.names()) {
    const io::TensorEntry& entry = *weights.find(name);
    bytes += static_cast<int64_t>(entry.end - entry.begin);
  }
  return bytes;
}

// How the formats of single modules are decided, as a user says it.
enum class Way { kOneFormat, kStatic, kDynamic, kBudgeted };

Way way_of(const recipe::Settings& settings) {
  const std::string &policy = settings.text("policy"), &format = settings.text("quantize");
  const bool budgeted = settings.given("budget");
  if (budgeted && policy != "none") {
    throw UsageError(
        fmt::format("limbeck quantize: --budget and --policy={} both decide: leave one of them out", policy));
  }
  if ((policy != "none" || budgeted) && format != "none") {
    throw UsageError(fmt::format(
        "limbeck quantize: --quantize={} gives all modules one format and {} each its own: leave one of them out",
        format, budgeted ? "--budget" : "--policy=" + policy));
  }
  if (!settings.values("tag").empty() && policy != "static") {
    throw UsageError("limbeck quantize: --tag says what --policy=static gives a role: add it, or leave --tag out");
  }
  if ((budgeted || policy == "dynamic") && !settings.given("data")) {
    throw UsageError(fmt::format(
        "limbeck quantize: {} goes by what is measured, and there is nothing to measure on: name a folder of token "
        "shards by --data, or take --policy=static, which needs none",
        budgeted ? "--budget" : "--policy=dynamic"));
  }
  if (settings.text("rounding") == "compensated" && !settings.given("data")) {
    throw UsageError(
        "limbeck quantize: --rounding=compensated goes by the inputs of each module, and there is nothing to see them "
        "on: name a folder of token shards by --data, or leave --rounding=nearest, which needs none");
  }
  if (budgeted) return Way::kBudgeted;
  if (policy != "none") return policy == "static" ? Way::kStatic : Way::kDynamic;
  if (format == "none" && settings.values("rule").empty()) {
    throw UsageError(
        "limbeck quantize: say in which format: --quantize=int4-sym for all linear weights of attention and MLP, or "
        "single modules by --rule='model.layers.0.** int8', or --policy or --budget, which choose for each; limbeck "
        "list quantizers shows the formats");
  }
  return Way::kOneFormat;
}

models::ModelRequest request_of(const recipe::Settings& settings) {
  models::ModelRequest request = single_model(settings);
  request.rules = rules_of_model(settings);
  return request;
}

// Policies have half floats, where nobody says otherwise: a float32 that is left would weigh more than all the codes.
void choose_floats(models::ModelRequest& request, Console& console) {
  if (request.dtype) return;
  const at::ScalarType own = models::build_on_meta(request).policy->stream_dtype();
  request.dtype = own == at::kBFloat16 ? own : at::kHalf;
  request.dtype_source = "the policy";
  if (own == *request.dtype) return;
  console.note(fmt::format("what is not packed is stored in {}: --dtype={} keeps the model's own",
                           precision::dtype_name(*request.dtype), precision::dtype_name(own)));
}

quantize::StaticQuantizationPolicy static_policy(const recipe::Settings& settings) {
  quantize::StaticQuantizationPolicy policy;
  for (const recipe::Value& tag : settings.values("tag")) policy.set(tag.text, "--tag");
  return policy;
}

void tell_decision(const quantize::FormatTable& table, const Decided& decided, Invocation& call) {
  const quantize::SizeEstimate estimate = quantize::estimate_model_size(table, decided.mix);
  call.console.note(mix_table(table, decided.mix, decided.reasons, call.width));
  call.console.result(estimate_line(estimate));
  call.result["modules"] = mix_json(table, decided.mix, decided.reasons);
  call.result["estimate"] = estimate_json(estimate);
}

const char* loaded_by(const std::string& layout, bool experts) {
  if (experts && !layout.empty()) return "limbeck";
  if (layout.empty()) return "transformers";
  return layout == "bitsandbytes" ? "transformers with bitsandbytes" : "transformers with compressed-tensors";
}

// `calibration`: null where there is no data.
void write_folder(models::ModelRequest request, const std::filesystem::path& folder, const Calibration* calibration,
                  Invocation& call) {
  const models::BuiltModel built_on_meta = models::build_on_meta(request);
  const quantize::FolderPlan plan = quantize::plan_folder(built_on_meta);
  models::refuse_shorter_last_groups(built_on_meta);
  const std::string layout = plan.layout.empty() ? "plain floats" : plan.layout;
  const bool experts = built_on_meta.config.architecture.experts.count > 0;
  if (experts && !plan.layout.empty()) {
    call.console.warning(
        "experts are stored one by one, as in the model's own folder: from a packed one transformers 5 computes "
        "something else (seen with Mixtral and Qwen3-MoE), and limbeck reads it");
  }
  call.console.note(fmt::format("planned, in the layout of {}:\n{}", layout, plan_table(plan, call.width)));

  // As the folder stores them: the codes are chosen by the scales that others will read.
  const at::ScalarType dtype = built_on_meta.policy->stream_dtype();
  request.scales = dtype;
  const models::BuiltModel built = models::load_model(request);
  report_load(built, call.console);
  if (call.settings.text("rounding") == "compensated") calibration->compensate(request, built);
  models::SaveOptions options;
  options.packed = !plan.layout.empty();
  models::save_model(built, folder, options);

  call.result["layout"] = layout;
  call.result["dtype"] = precision::dtype_name(dtype);
  call.result.update(plan_json(plan));
  const int64_t bytes = payload_of(folder);
  const double ratio = ratio_to_float32(call.result["values"].get<int64_t>(), bytes);
  call.result["bytes"] = bytes;
  call.result["compression_ratio"] = ratio;
  call.result["output"] = folder.string();
  call.console.result(fmt::format("{}: {} of weights, everything counted, 1/{:.2f} of float32; layout {}, loaded by {}",
                                  folder.string(), human_bytes(bytes), ratio, layout, loaded_by(plan.layout, experts)));
}

void run_quantize(Invocation& call) {
  const auto& settings = call.settings;
  const auto folder = settings.required_path("output");
  if (settings.given("adapter")) {
    throw UsageError(
        "limbeck quantize takes a model without an adapter: make it part of the model first (limbeck merge)");
  }
  const Way way = way_of(settings);
  models::ModelRequest request = request_of(settings);
  if (way == Way::kOneFormat && !settings.given("data")) return write_folder(std::move(request), folder, nullptr, call);

  if (way == Way::kBudgeted) quantize::Budget::parse(settings.text("budget"), "--budget");
  if (way != Way::kOneFormat) choose_floats(request, call.console);
  const bool by_roles = way == Way::kStatic;
  const quantize::StaticQuantizationPolicy policy = static_policy(settings);
  const std::string formats = way == Way::kOneFormat ? quantize::kFloatFormat : settings.text("formats");
  const quantize::FormatTable table(request,
                                    by_roles ? policy.formats() : quantize::parse_formats(formats, "--formats"));
  std::unique_ptr<Calibration> calibration;
  if (settings.given("data")) calibration = std::make_unique<Calibration>(request, table, call);
  if (way != Way::kOneFormat) {
    if (by_roles) {
      for (const std::string& line : policy.unmet(models::build_on_meta(request))) call.console.warning(line);
    }
    const Decided decided = by_roles               ? Decided{policy.mix(table)}
                            : way == Way::kDynamic ? calibration->dynamic()
                                                   : calibration->budgeted();
    tell_decision(table, decided, call);
    request.packing = quantize::packing_of(decided.mix, way == Way::kBudgeted ? "--budget" : "--policy");
  }
  write_folder(request, folder, calibration.get(), call);
  if (calibration) calibration->measure(folder);
}

void declare_quantize(recipe::OptionTable& table) {
  declare_single_model(table);
  table.add({.name = "rule",
             .kind = recipe::OptionKind::kList,
             .help = "The format of single modules, such as \"model.layers.0.** int8\", or a dtype, which leaves them "
                     "floats; may be repeated, the last one that matches wins.",
             .value_name = "\"PATTERN FORMAT\"",
             .flag_only = true});
  table.group("Policy");
  table.add({.name = "policy",
             .kind = recipe::OptionKind::kChoice,
             .fallback = "none",
             .help = "static: each module's format by its role (experts int4, attention and MLP int8, the rest float); "
                     "dynamic: by its importance, measured on --data.",
             .words = {"none", "static", "dynamic"},
             .flag_only = true});
  table.add({.name = "tag",
             .kind = recipe::OptionKind::kList,
             .help = "What --policy=static gives the modules of a role, such as \"mlp int4-g32\"; may be repeated.",
             .value_name = "\"ROLE FORMAT\"",
             .flag_only = true});
  declare_measured(table);
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
