#include "modules/models/weights/load_model.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "modules/models/weights/initialize.h"

namespace limbeck::models {

namespace {

void refuse_unsound_quantization(const ModelRequest& request, at::ScalarType dtype, const std::string& source) {
  if (!request.quantize) return;
  const std::string format = kernels::format_name(request.quantize->format);
  if (dtype == at::kHalf && request.for_training) {
    throw UsageError(fmt::format(
        "[{}] {} weights ({}) with float16 activations ({}): what trains beside quantized weights is float32, and its "
        "gradients would come through float16, where they vanish and overflow: use bfloat16 or float32 activations "
        "with the quantized base ({}.dtype=bfloat16), or a float16 base without quantization ({}.quantize=none)",
        request.root, format, request.quantize->source, source, request.root, request.root));
  }
  if (dtype == at::kDouble) {
    throw UsageError(
        fmt::format("[{}] {} weights ({}) with float64 activations ({}): quantized weights compute in "
                    "float32: use float32, bfloat16 or float16, or no quantization",
                    request.root, format, request.quantize->source, source));
  }
}

BuiltModel build(const ModelRequest& request, std::optional<c10::Device> placement, const io::WeightsFolder* weights) {
  BuiltModel built;
  built.config = read_model_config(request.folder);
  at::ScalarType dtype = at::kFloat;
  std::string source = request.dtype_source;
  if (request.dtype) {
    dtype = *request.dtype;
  } else if (!built.config.architecture.dtype.empty()) {
    dtype = precision::dtype_from_name(built.config.architecture.dtype);
    source = (request.folder / "config.json").string();
  } else if (weights != nullptr && !weights->names().empty()) {
    dtype = weights->find(weights->names().front())->dtype;
    source = "the weights";
  }
  refuse_unsound_quantization(request, dtype, source);
  built.policy =
      std::make_shared<precision::PrecisionPolicy>(dtype, request.device, source, request.rules, request.quantize);
  const Scope scope{built.policy.get(), request.root, placement, request.trainable};
  built.model = std::make_shared<Transformer>(scope, built.config.architecture);
  if (!request.adapted) built.policy->require_all_rules_used(request.root);
  return built;
}

// A GPU's operators must be in the process before anything asks ATen for CUDA: ATen keeps its first answer.
// "cuda" becomes the present one, "cuda:0" unless the ranks of a run chose (trainer/parallel/ranks/join.cpp): what its
// tensors report.
c10::Device usable_device(const ModelRequest& request) {
  if (request.device.is_cpu()) return request.device;
  if (!request.device.is_cuda()) {
    throw ContractError(fmt::format("device {} for [{}]: wanted cpu or cuda; meta holds no weights and is for check",
                                    request.device.str(), request.root));
  }
  if (kernels::cuda_available()) {
    return request.device.has_index() ? request.device : c10::impl::VirtualGuardImpl(c10::kCUDA).getDevice();
  }
  throw ContractError(
      fmt::format("device {} for [{}]: no GPU can be used on this machine (no driver, or a build without CUDA "
                  "operators): use --device=cpu",
                  request.device.str(), request.root));
}

}  // namespace

BuiltModel build_on_meta(const ModelRequest& request) {
  BuiltModel built = build(request, c10::Device(c10::kMeta), nullptr);
  built.report.bindings = bind_weights(*built.model, *built.config.family);
  return built;
}

BuiltModel load_model(const ModelRequest& asked) {
  ModelRequest request = asked;
  request.device = usable_device(asked);
  if (request.random_init) {
    BuiltModel built = build(request, std::nullopt, nullptr);
    initialize_weights(*built.model, request.seed);
    built.report.bindings = bind_weights(*built.model, *built.config.family);
    return built;
  }
  const io::WeightsFolder weights(request.folder,
                                  request.allow_nonfinite ? io::NonFinite::kAllow : io::NonFinite::kRefuse);
  BuiltModel built = build(request, std::nullopt, &weights);
  LoadOptions options;
  options.cast = request.dtype.has_value() || !request.rules.empty();
  options.allow_nonfinite = request.allow_nonfinite;
  built.report = load_weights(*built.model, *built.config.family, weights, options);
  for (const std::string& note : weights.notes()) built.report.notes.push_back(note);
  return built;
}

}  // namespace limbeck::models
