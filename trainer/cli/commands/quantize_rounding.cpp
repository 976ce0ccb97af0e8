// The part of limbeck quantize that chooses codes anew by data: --rounding.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "modules/precision/contract_modules.h"
#include "trainer/cli/commands/evaluation_table.h"
#include "trainer/cli/commands/quantize_measured.h"

namespace limbeck::cli {

namespace {

std::string rounding_plan_line(const quantize::RoundingPlan& plan, const quantize::RoundingRows& rows,
                               const quantize::RoundingRequest& request) {
  std::string line = fmt::format(
      "rounding {} modules of {} stages by {} calibration rows; at a time {} of states, one layer's, and {} of moments",
      plan.modules, plan.stages, rows.count, human_bytes(plan.state_bytes), human_bytes(plan.moment_bytes));
  if (request.way != quantize::RoundingWay::kLearned) return line;
  return line + fmt::format(
                    "; {} steps of {} rows a layer, {} of what they learn and one row's activations; what is behind "
                    "the layers is compensated",
                    request.steps, quantize::rows_of_a_step(rows.count), human_bytes(plan.learned_bytes));
}

void tell_rounded_experts(const quantize::RoundedModel& rounded, Invocation& call) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const quantize::RoundedExperts& of : rounded.experts) {
    json[of.path] = {{"format", of.format},
                     {"tokens", of.tokens},
                     {"nearest", of.nearest},
                     {"compensated", of.compensated},
                     {"to_nearest", of.to_nearest}};
    call.console.note(fmt::format("{}: squared error of its products {:.4g} a token, to nearest {:.4g}", of.path,
                                  of.compensated, of.nearest));
    if (of.to_nearest.empty()) continue;
    call.console.warning(fmt::format(
        "{}: experts {} are rounded to nearest: fewer calibration tokens came to each than a quarter of its "
        "columns",
        of.path, fmt::join(of.to_nearest, ", ")));
  }
  if (!json.empty()) call.result["rounded_experts"] = json;
}

void tell_rounding(const quantize::RoundedModel& rounded, Invocation& call) {
  double nearest = 0, compensated = 0;
  for (const quantize::RoundedModule& module : rounded.modules) {
    nearest += module.nearest;
    compensated += module.compensated;
    if (module.tokens > 0) continue;
    call.console.warning(
        fmt::format("{}: no calibration token told anything of its inputs: it is rounded to nearest", module.path));
  }
  call.console.note(rounding_table(rounded.modules, call.width));
  call.console.result(fmt::format("rounding: squared error of the modules' outputs {:.4g} a token, to nearest {:.4g}",
                                  compensated, nearest));
  call.result["rounding"] = rounding_json(rounded.modules);
  if (call.settings.text("rounding") != "learned") return;
  call.console.result(learned_table(rounded.layers, call.width));
  call.result["learned"] = learned_json(rounded.layers);
}

}  // namespace

// What the codes depend on.
void Calibration::open_work(const quantize::MixedPrecisionQuantizer& quantizer,
                            const quantize::RoundingRequest& request) {
  nlohmann::ordered_json formats = nlohmann::ordered_json::object();
  for (const auto& stage : quantize::packed_stages(*quantizer.packed().model)) {
    for (const auto& module : stage) formats[module->path()] = kernels::format_name(module->packed()->format());
  }
  for (const auto& module : precision::contract_modules(*quantizer.packed().model)) {
    if (module->role() == precision::Role::kExpert && module->precision().quantized)
      formats[module->path()] = precision::storage_name(module->precision());
  }
  const bool learned = request.way == quantize::RoundingWay::kLearned;
  work_.emplace(beside_output(call_.settings, ".rounding"),
                nlohmann::ordered_json{{"limbeck_rounding", 1},
                                       {"model", quantize::digest_of(model_)},
                                       {"data", data_identity()},
                                       {"calibration rows", calibration_rows_},
                                       {"rounding", call_.settings.text("rounding")},
                                       {"steps", learned ? request.steps : 0},
                                       {"scales", precision::dtype_name(quantizer.structure().policy->stream_dtype())},
                                       {"formats", formats}});
}

void Calibration::end_rounding() {
  if (work_) work_->remove();
}

void Calibration::round(quantize::MixedPrecisionQuantizer& quantizer) {
  const auto& settings = call_.settings;
  const quantize::RoundingRows rows{[this](int64_t row) { return source_->batch(row); }, calibration_rows_,
                                    settings.integer("sequence-length")};
  quantize::RoundingRequest request;
  request.steps = settings.integer("rounding-steps");
  if (settings.text("rounding") == "learned") request.way = quantize::RoundingWay::kLearned;
  open_work(quantizer, request);
  request.work = &*work_;
  const quantize::RoundingPlan plan = quantize::plan_rounding(quantizer.packed(), rows, request.way);
  call_.console.note(rounding_plan_line(plan, rows, request));
  const int64_t finished = work_->finished();
  if (finished > 0) {
    call_.console.note(fmt::format("{}: goes on {}", beside_output(settings, ".rounding").string(),
                                   finished < plan.stages ? fmt::format("at stage {} of {}", finished + 1, plan.stages)
                                                          : fmt::format("behind all {} stages", plan.stages)));
  }
  const auto progress = progress_of(call_, "rounding", "stages", plan.stages);
  const quantize::RoundedModel rounded =
      quantizer.calibrate(rows, request, [&](int64_t stage) { progress->update(stage); });
  progress->finish();
  tell_rounding(rounded, call_);
  tell_rounded_experts(rounded, call_);
}

}  // namespace limbeck::cli
