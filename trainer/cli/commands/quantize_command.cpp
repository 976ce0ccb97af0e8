// limbeck quantize: a model's weights in 8 to 2 bits, as a folder that other programs load.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "modules/errors.h"
#include "modules/io/safetensors.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/contract_modules.h"
#include "modules/precision/policy.h"
#include "trainer/cli/commands/command.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/model_options.h"
#include "trainer/cli/commands/quantize_measured.h"
#include "trainer/quantize/score_file.h"
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
  const bool budgeted = settings.given("budget") || settings.given("budgets");
  const char* by_budget = settings.given("budgets") ? "--budgets" : "--budget";
  if (settings.given("budget") && settings.given("budgets")) {
    throw UsageError(
        "limbeck quantize: --budgets shows what several cost and --budget writes one: leave one of them out");
  }
  if (budgeted && policy != "none") {
    throw UsageError(
        fmt::format("limbeck quantize: {} and --policy={} both decide: leave one of them out", by_budget, policy));
  }
  if ((policy != "none" || budgeted) && format != "none") {
    throw UsageError(fmt::format(
        "limbeck quantize: --quantize={} gives all modules one format and {} each its own: leave one of them out",
        format, budgeted ? by_budget : "--policy=" + policy));
  }
  if (!settings.values("tag").empty() && policy != "static") {
    throw UsageError("limbeck quantize: --tag says what --policy=static gives a role: add it, or leave --tag out");
  }
  if (settings.given("sweep") && !budgeted)
    throw UsageError("limbeck quantize: --sweep is what a budget goes by: add --budget, or leave it out");
  if (settings.given("sweep") && settings.given("predict-by")) {
    throw UsageError(
        "limbeck quantize: --sweep and --predict-by both say what a budget goes by: leave one of them out");
  }
  if (settings.given("times") && !budgeted)
    throw UsageError("limbeck quantize: --times is what a budget of milliseconds goes by: add --budget=\"3 ms\"");
  if (settings.given("predict-by") && !budgeted)
    throw UsageError("limbeck quantize: --predict-by says what a budget goes by: add --budget, or leave it out");
  if ((budgeted || policy == "dynamic") && !settings.given("data")) {
    throw UsageError(fmt::format(
        "limbeck quantize: {} goes by what is measured, and there is nothing to measure on: name a folder of token "
        "shards by --data, or take --policy=static, which needs none",
        budgeted ? by_budget : "--policy=dynamic"));
  }
  if (settings.text("rounding") != "nearest" && !settings.given("data")) {
    throw UsageError(fmt::format(
        "limbeck quantize: --rounding={} goes by the inputs of each module, and there is nothing to see them "
        "on: name a folder of token shards by --data, or leave --rounding=nearest, which needs none",
        settings.text("rounding")));
  }
  if (settings.given("rounding-steps") && settings.text("rounding") != "learned") {
    throw UsageError(
        "limbeck quantize: --rounding-steps says how long --rounding=learned learns: add it, or leave the steps out");
  }
  if (budgeted) return Way::kBudgeted;
  if (policy != "none") return policy == "static" ? Way::kStatic : Way::kDynamic;
  if (format == "none" && settings.values("rule").empty()) {
    throw UsageError(
        "limbeck quantize: say in which format: --quantize=int4-sym for all linear weights of attention and MLP and "
        "experts, or "
        "single modules by --rule='model.layers.0.** int8', or --policy or --budget, which choose for each; limbeck "
        "list quantizers shows the formats");
  }
  return Way::kOneFormat;
}

// Importance is compared among the modules of layers. What vLLM serves keeps embeddings and heads in floats, unless a
// role is given a format; and a sweep knows nothing of embeddings.
quantize::Covered covered_by(Way way, const recipe::Settings& settings) {
  const bool tables = settings.text("serve-by") != "vllm" && !settings.given("sweep");
  const bool everything = way == Way::kStatic || (way == Way::kBudgeted && tables);
  return everything ? quantize::Covered::kEverything : quantize::Covered::kLayers;
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
  request.dtype = quantize::floats_of_policies(request);
  request.dtype_source = "the policy";
  if (own == *request.dtype) return;
  console.note(fmt::format("what is not packed is stored in {}: --dtype={} keeps the model's own",
                           precision::dtype_name(*request.dtype), precision::dtype_name(own)));
}

bool served_by_vllm(const recipe::Settings& settings) { return settings.text("serve-by") == "vllm"; }

std::vector<quantize::StoredFormat> formats_of(const std::string& names, const recipe::Settings& settings) {
  auto formats = quantize::parse_formats(names, "--formats");
  for (const quantize::StoredFormat& format : formats) {
    if (served_by_vllm(settings) && format.packed && format.packed->bits < 4)
      quantize::refuse_for_vllm("--formats has", *format.packed);
  }
  return formats;
}

// Where nobody names formats and some of 3 and 2 bits hold a budget that those of 4 bits and more do not, they are
// there too. They take their time to be scored, and so are left out elsewhere, but where scores are gone on with that
// have them.
quantize::FormatTable table_of_budgets(const models::ModelRequest& request,
                                       const std::vector<quantize::Budget>& budgets, const recipe::Settings& settings) {
  const std::string names = settings.text("formats"), more = names + ",int3-g32,int3,int2-g32,int2";
  const auto covered = covered_by(Way::kBudgeted, settings);
  quantize::FormatTable table(request, formats_of(names, settings), covered);
  const bool times = std::any_of(budgets.begin(), budgets.end(), [](const auto& budget) { return budget.is_time(); });
  if (settings.given("formats") || served_by_vllm(settings) || times || settings.given("sweep")) return table;
  const auto held_by = [&](const quantize::FormatTable& one) {
    return std::count_if(budgets.begin(), budgets.end(), [&](const quantize::Budget& budget) {
      return quantize::why_too_small(one, quantize::Costs(one), budget).empty();
    });
  };
  const auto held = held_by(table);
  const bool goes_on = quantize::ScoreFile::formats_in(score_path(settings)) == more;
  if (held == static_cast<std::ptrdiff_t>(budgets.size()) && !goes_on) return table;
  quantize::FormatTable wider(request, formats_of(more, settings), covered);
  return goes_on || held == 0 || held_by(wider) > held ? wider : table;
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

// transformers unpacks experts while it stacks them, where all layers have theirs in one symmetric format of
// compressed-tensors' words; it takes floats beside packed modules, zeros and other layouts for something else.
bool experts_for_limbeck_alone(const models::BuiltModel& built, const std::string& layout) {
  if (layout.empty()) return false;
  std::optional<kernels::QuantizedFormat> first;
  for (const auto& module : precision::contract_modules(*built.model)) {
    if (module->role() != precision::Role::kExpert) continue;
    const auto& format = module->precision().quantized;
    if (layout != "compressed-tensors" || !format || format->dynamic || format->has_zeros) return true;
    if (first && !(*first == *format)) return true;
    first = format;
  }
  return false;
}

const char* loaded_by(const std::string& layout, bool limbeck_alone) {
  if (limbeck_alone) return "limbeck";
  if (layout.empty()) return "transformers";
  return layout == "bitsandbytes" ? "transformers with bitsandbytes" : "transformers with compressed-tensors";
}

// `calibration`: null where there is no data.
void write_folder(models::ModelRequest request, const std::filesystem::path& folder, Calibration* calibration,
                  Invocation& call) {
  quantize::MixedPrecisionQuantizer quantizer(std::move(request));
  quantizer.create_quantizers();
  if (served_by_vllm(call.settings)) {
    quantizer.require_bits_of_vllm();
    quantizer.require_fused_alike();
  }
  const models::BuiltModel& built_on_meta = quantizer.structure();
  const quantize::FolderPlan& plan = quantizer.plan();
  const std::string layout = plan.layout.empty() ? "plain floats" : plan.layout;
  const bool known_elsewhere = !built_on_meta.config.family->of_limbeck;
  const bool limbeck_alone = !known_elsewhere || experts_for_limbeck_alone(built_on_meta, plan.layout);
  if (limbeck_alone && known_elsewhere) {
    call.console.warning(
        "experts are stored one by one, as in the model's own folder: of packed folders transformers 5 computes what "
        "they mean where all experts are in one symmetric format (int8, int4-sym, or groups of these), and something "
        "else of this one, which limbeck reads");
  }
  call.console.note(fmt::format("planned, in the layout of {}:\n{}", layout, plan_table(plan, call.width)));

  const bool by_data = call.settings.text("rounding") != "nearest";
  quantizer.start_calibration(by_data ? std::optional(calibration->floats()) : std::nullopt);
  report_load(quantizer.packed(), call.console);
  if (by_data) calibration->round(quantizer);
  quantizer.end_calibration();
  models::SaveOptions options;
  options.packed = !plan.layout.empty();
  models::save_model(quantizer.quantize_model(), folder, options);
  if (by_data) calibration->end_rounding();

  call.result["layout"] = layout;
  call.result["dtype"] = precision::dtype_name(built_on_meta.policy->stream_dtype());
  call.result.update(plan_json(plan));
  const int64_t bytes = payload_of(folder);
  const double ratio = ratio_to_float32(call.result["values"].get<int64_t>(), bytes);
  call.result["bytes"] = bytes;
  call.result["compression_ratio"] = ratio;
  call.result["output"] = folder.string();
  call.console.result(fmt::format("{}: {} of weights, everything counted, 1/{:.2f} of float32; layout {}, loaded by {}",
                                  folder.string(), human_bytes(bytes), ratio, layout,
                                  loaded_by(plan.layout, limbeck_alone)));
}

// What is chosen is written by --budget: no folder holds several.
std::vector<quantize::Budget> budgets_of_curve(const recipe::Settings& settings) {
  const auto budgets = quantize::parse_budgets(settings.text("budgets"), "--budgets");
  if (settings.given("output")) {
    throw UsageError(fmt::format(
        "limbeck quantize: --output is the folder of one model, and --budgets shows {} without writing any: "
        "leave --output out, or write the chosen one by --budget=\"{}\"",
        budgets.size(), budgets.front().text()));
  }
  if (settings.text("rounding") != "nearest") {
    throw UsageError(
        "limbeck quantize: --budgets measures mixes that are rounded to nearest: leave --rounding out, and add it to "
        "the --budget that is written");
  }
  if (!settings.given("scores")) {
    throw UsageError(
        "limbeck quantize: --budgets writes no folder beside which the scores would lie: name their file by --scores, "
        "and --budget takes them from there");
  }
  return budgets;
}

void show_curve(models::ModelRequest request, Invocation& call) {
  const auto budgets = budgets_of_curve(call.settings);
  choose_floats(request, call.console);
  const quantize::FormatTable table = table_of_budgets(request, budgets, call.settings);
  call.result["values"] = table.values();
  Calibration(request, table, call).curve(budgets);
}

void run_quantize(Invocation& call) {
  const auto& settings = call.settings;
  if (settings.given("adapter")) {
    throw UsageError(
        "limbeck quantize takes a model without an adapter: make it part of the model first (limbeck merge)");
  }
  const Way way = way_of(settings);
  models::ModelRequest request = request_of(settings);
  if (settings.given("budgets")) return show_curve(std::move(request), call);
  const auto folder = settings.required_path("output");
  if (way == Way::kOneFormat && !settings.given("data")) return write_folder(std::move(request), folder, nullptr, call);

  std::optional<quantize::Budget> budget;
  if (way == Way::kBudgeted) budget = quantize::Budget::parse(settings.text("budget"), "--budget");
  if (way != Way::kOneFormat) choose_floats(request, call.console);
  const bool by_roles = way == Way::kStatic;
  const quantize::StaticQuantizationPolicy policy = static_policy(settings);
  const std::string formats = way == Way::kOneFormat ? quantize::kFloatFormat : settings.text("formats");
  const quantize::FormatTable table =
      budget ? table_of_budgets(request, {*budget}, settings)
             : quantize::FormatTable(request, by_roles ? policy.formats() : formats_of(formats, settings),
                                     covered_by(way, settings));
  std::unique_ptr<Calibration> calibration;
  if (settings.given("data")) calibration = std::make_unique<Calibration>(request, table, call);
  if (way != Way::kOneFormat) {
    const Decided decided = by_roles               ? Decided{policy.mix(table)}
                            : way == Way::kDynamic ? calibration->dynamic()
                                                   : calibration->budgeted(*budget);
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
  table.add(
      {.name = "serve-by",
       .kind = recipe::OptionKind::kChoice,
       .fallback = "any",
       .help =
           "vllm: refuse formats that vLLM does not serve, because it computes modules as one that differ; a budget "
           "leaves embeddings and head floats.",
       .words = {"any", "vllm"},
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
          .summary = "A model's weights in 8 to 2 bits, as a folder that other programs load.",
          .example = "limbeck quantize --model models/base --quantize int4-sym --output models/base-int4",
          .computes = true,
          .declare = declare_quantize,
          .run = run_quantize};
}

}  // namespace limbeck::cli
