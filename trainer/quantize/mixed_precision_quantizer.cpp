#include "trainer/quantize/mixed_precision_quantizer.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <map>
#include <utility>

#include "kernels/quantized/compensated_rounding.h"
#include "modules/errors.h"
#include "modules/models/weights/save_model.h"
#include "modules/precision/contract_modules.h"
#include "trainer/quantize/importance.h"
#include "trainer/quantize/static_policy.h"

namespace limbeck::quantize {

namespace {

models::ModelRequest in_float32(models::ModelRequest request, const char* why) {
  request.dtype = at::kFloat;
  request.dtype_source = why;
  return request;
}

std::shared_ptr<models::Linear> linear_at(const models::BuiltModel& built, const std::string& path) {
  for (const auto& module : precision::contract_modules(*built.model)) {
    if (module->path() == built.model->path() + "." + path) return std::dynamic_pointer_cast<models::Linear>(module);
  }
  return nullptr;
}

// What is packed of two models with the same contracts, but for dtypes.
void take_packed_weights(const models::BuiltModel& to, const models::BuiltModel& from) {
  const auto taking = precision::contract_modules(*to.model), giving = precision::contract_modules(*from.model);
  for (size_t i = 0; i < taking.size(); ++i) {
    for (const auto& [name, weight] : giving.at(i)->packed_weights())
      taking[i]->replace_packed_weight(name, weight.on(taking[i]->placement()));
  }
}

std::string int4_of(int64_t group_size) {
  for (const char* name : {"int4", "int4-g64", "int4-g32"}) {
    if (kernels::find_format(name)->group() == group_size) return name;
  }
  throw UsageError(fmt::format("group_size = {}: wanted 128, 64 or 32", group_size));
}

Mix dynamic_mix(const FormatTable& table, const models::ModelRequest& request, const data::DataSource& data,
                int64_t batches) {
  models::ModelRequest wide = in_float32(request, "importance is measured in float32");
  wide.trainable = true;
  const models::BuiltModel model = models::load_model(wide);
  const ScoreMeter meter(model, table, *request.dtype);
  const auto& formats = table.formats();
  return DynamicQuantizationPolicy{LayerImportanceAnalyzer(meter, table).analyze(data, batches)}.mix(
      formats[0].name, formats[1].name, formats[2].name);
}

}  // namespace

void MixedPrecisionQuantizer::require(const char* asked, Stage from, Stage to) const {
  if (stage_ >= from && stage_ <= to) return;
  const char* const stages[] = {"without its quantizers: call create_quantizers()",
                                "not calibrated: call start_calibration(), then end_calibration()",
                                "being calibrated: call end_calibration()", "calibrated: make another one"};
  throw UsageError(fmt::format("MixedPrecisionQuantizer::{}: {} is {}", asked, request_.folder.string(),
                               stages[static_cast<size_t>(stage_)]));
}

void MixedPrecisionQuantizer::create_quantizers() {
  require("create_quantizers", Stage::kNew, Stage::kNew);
  structure_ = models::build_on_meta(request_);
  plan_ = plan_folder(*structure_);
  models::refuse_shorter_last_groups(*structure_);
  // As the folder stores them: the codes are chosen by the scales that others will read.
  request_.scales = structure_->policy->stream_dtype();
  stage_ = Stage::kCreated;
}

void MixedPrecisionQuantizer::require_bits_of_vllm() const {
  require("require_bits_of_vllm", Stage::kCreated, Stage::kCalibrated);
  for (const auto& module : precision::contract_modules(*structure_->model)) {
    const auto& format = module->precision().quantized;
    if (format && format->bits < 4) refuse_for_vllm(module->path() + " is in", *format);
  }
}

void MixedPrecisionQuantizer::require_fused_alike() const {
  require("require_fused_alike", Stage::kCreated, Stage::kCalibrated);
  std::map<std::string, std::pair<std::string, std::string>> first;  // by group: a module and its format
  for (const auto& module : precision::contract_modules(*structure_->model)) {
    const auto* linear = dynamic_cast<const models::Linear*>(module.get());
    if (linear == nullptr || linear->is_tied()) continue;
    const std::string format =
        linear->is_quantized() ? kernels::format_name(linear->packed()->format()) : std::string(kFloatFormat);
    const auto [one, is_new] = first.emplace(linear->fused_with(), std::pair(linear->path(), format));
    if (is_new || one->second.second == format) continue;
    throw UsageError(
        fmt::format("{} is {} and {} is {}, which vLLM computes as one and takes in one format alone: give both the "
                    "same by --rule, or choose by --budget, which ties them",
                    one->second.first, one->second.second, linear->path(), format));
  }
}

const models::BuiltModel& MixedPrecisionQuantizer::structure() const {
  require("structure", Stage::kCreated, Stage::kCalibrated);
  return *structure_;
}

const FolderPlan& MixedPrecisionQuantizer::plan() const {
  require("plan", Stage::kCreated, Stage::kCalibrated);
  return plan_;
}

SizeEstimate MixedPrecisionQuantizer::estimate_model_size() const {
  require("estimate_model_size", Stage::kCreated, Stage::kCalibrated);
  int64_t values = 0, bytes = 0;
  for (const FolderPlan::Tensor& tensor : plan_.tensors) values += tensor.values, bytes += tensor.bytes;
  return size_estimate(values, bytes);
}

void MixedPrecisionQuantizer::start_calibration(std::optional<models::BuiltModel> floats) {
  require("start_calibration", Stage::kCreated, Stage::kCreated);
  floats_ = std::move(floats);
  packed_ = models::load_model(request_);
  stage_ = Stage::kCalibrating;
}

const models::BuiltModel& MixedPrecisionQuantizer::packed() const {
  require("packed", Stage::kCalibrating, Stage::kCalibrated);
  return *packed_;
}

const models::BuiltModel& MixedPrecisionQuantizer::floats() {
  if (!floats_) {
    models::ModelRequest asked = in_float32(request_, "codes are calibrated against float32");
    asked.packing = {};
    asked.rules = {};
    floats_ = models::load_model(asked);
  }
  return *floats_;
}

RoundedModule MixedPrecisionQuantizer::calibrate_layer(const std::string& path, const at::Tensor& second_moments,
                                                       int64_t tokens) {
  require("calibrate_layer", Stage::kCalibrating, Stage::kCalibrating);
  const at::NoGradGuard no_gradient;
  const auto linear = linear_at(*packed_, path);
  if (linear == nullptr || linear->is_tied() || !linear->is_quantized())
    throw UsageError(fmt::format("MixedPrecisionQuantizer::calibrate_layer: {} is no packed module of {}", path,
                                 request_.folder.string()));
  RoundedModule rounded = round_module(*linear_at(floats(), path), *linear, kernels::compensation_of(second_moments),
                                       tokens, request_.scales);
  rounded.path = path;
  return rounded;
}

RoundedModel MixedPrecisionQuantizer::calibrate(const RoundingRows& rows, RoundingRequest request,
                                                const std::function<void(int64_t)>& done) {
  require("calibrate", Stage::kCalibrating, Stage::kCalibrating);
  const models::BuiltModel wide = models::load_model(in_float32(request_, "codes are calibrated in float32"));
  request.scales = request_.scales;
  RoundedModel rounded = round_model(floats(), wide, rows, request, done);
  take_packed_weights(*packed_, wide);
  return rounded;
}

void MixedPrecisionQuantizer::end_calibration() {
  require("end_calibration", Stage::kCalibrating, Stage::kCalibrating);
  floats_.reset();
  stage_ = Stage::kCalibrated;
}

models::BuiltModel MixedPrecisionQuantizer::quantize_model() const {
  require("quantize_model", Stage::kCalibrated, Stage::kCalibrated);
  return *packed_;
}

at::ScalarType floats_of_policies(const models::ModelRequest& request) {
  const at::ScalarType own = models::build_on_meta(request).policy->stream_dtype();
  return own == at::kBFloat16 ? own : at::kHalf;
}

MixedPrecisionQuantizer create_mixed_precision_quantizer(models::ModelRequest model, const data::DataSource* data,
                                                         bool use_dynamic_policy, int64_t num_importance_batches,
                                                         int64_t group_size) {
  const std::string int4 = int4_of(group_size);
  if (use_dynamic_policy && data == nullptr) {
    throw UsageError(
        "create_mixed_precision_quantizer: the dynamic policy goes by what is measured, and there is nothing to "
        "measure on: give it data, or take the static policy");
  }
  if (!model.dtype) {
    model.dtype = floats_of_policies(model);
    model.dtype_source = "the policy";
  }
  StaticQuantizationPolicy by_roles(int4);
  const FormatTable table(model, use_dynamic_policy
                                     ? parse_formats(std::string(kFloatFormat) + ",int8," + int4, "group_size")
                                     : by_roles.formats());
  const Mix mix = use_dynamic_policy ? dynamic_mix(table, model, *data, num_importance_batches) : by_roles.mix(table);
  model.packing = packing_of(mix, "the policy");
  return MixedPrecisionQuantizer(std::move(model));
}

}  // namespace limbeck::quantize
