#include "modules/models/weights/load_model.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "kernels/operator/cuda_library.h"
#include "modules/errors.h"
#include "modules/models/weights/initialize.h"
#include "modules/models/weights/new_head.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::models {

namespace {

void refuse_unsound_packing(const ModelRequest& request, const BuiltModel& built) {
  for (const auto& module : precision::contract_modules(*built.model)) {
    const precision::Precision& contract = module->precision();
    if (!contract.quantized) continue;
    if (contract.compute == at::kHalf && request.for_training) {
      throw UsageError(fmt::format(
          "[{0}] has {1} weights ({2}) with float16 activations ({3}): what trains beside quantized weights is "
          "float32, "
          "and its gradients would come through float16, where they vanish and overflow: use bfloat16 or float32 "
          "activations with the quantized base ({4}.dtype=bfloat16), or a float16 base without quantization "
          "({4}.quantize=none)",
          module->path(), precision::storage_name(contract), contract.source, built.policy->source(), request.root));
    }
    if (contract.compute == at::kDouble) {
      throw UsageError(fmt::format(
          "[{}] has {} weights ({}) with float64 activations ({}): quantized weights compute in float32: use float32, "
          "bfloat16 or float16 activations, or no quantization",
          module->path(), precision::storage_name(contract), contract.source, built.policy->source()));
    }
  }
}

// Whether a folder has its experts packed is not always in its config.json: transformers 5 leaves them floats beside
// packed linear modules and says nothing of it. Their names in the files do say; null where there are no files (check).
std::shared_ptr<const io::WeightsFolder> names_of_experts(const ModelConfig& config) {
  if (config.architecture.experts.count == 0) return nullptr;
  const auto there = [&](const char* file) { return std::filesystem::exists(config.folder / file); };
  if (!there("model.safetensors") && !there("model.safetensors.index.json")) return nullptr;
  return std::make_shared<io::WeightsFolder>(config.folder, io::NonFinite::kAllow);
}

// That of all experts of a layer, which are in one.
std::optional<kernels::QuantizedFormat> format_of_experts(const ModelConfig& config, const io::WeightsFolder* names,
                                                          const std::string& path) {
  std::optional<kernels::QuantizedFormat> common;
  std::string first;
  const auto spelled = [](const auto& format) { return format ? kernels::format_name(*format) : "floats"; };
  for (int64_t expert = 0; expert < config.architecture.experts.count; ++expert) {
    for (const std::string& part : ExpertWeights::matrix_names(config.architecture)) {
      const std::string name = stored_name(*config.family, fmt::format("{}.{}.{}", path, expert, part), "weight");
      auto format = config.layout->format_of(name, Role::kExpert);
      if (names != nullptr && names->find(name) != nullptr && config.layout->tensors_of(*names, name).empty()) {
        format.reset();
      }
      if (first.empty()) first = name, common = format;
      if (format == common) continue;
      throw WeightsError(fmt::format(
          "{}: {} is in {} and {} in {}, and the experts of a layer are read in one format: quantize them alike",
          (config.folder / "config.json").string(), first, spelled(common), name, spelled(format)));
    }
  }
  return common;
}

// By path below the root.
std::map<std::string, kernels::QuantizedFormat> formats_of_experts(const ModelConfig& config) {
  const auto names = names_of_experts(config);
  std::map<std::string, kernels::QuantizedFormat> formats;
  for (int64_t layer = 0; layer < config.architecture.layers; ++layer) {
    if (!config.architecture.sparse(layer)) continue;
    const std::string path = fmt::format("layers.{}.mlp.experts", layer);
    if (const auto format = format_of_experts(config, names.get(), path)) formats[path] = *format;
  }
  return formats;
}

// As asked, or as the folder has its weights.
precision::Packing packing_of(const ModelRequest& request, const ModelConfig& config) {
  if (config.layout == nullptr || request.unpacked) return request.packing;
  if (request.packing.format_of) {
    throw UsageError(fmt::format(
        "[{}] {} with {}, whose weights are packed already ({}): leave it out; a precision.rule changes single modules",
        request.root, request.packing.source, (config.folder / "config.json").string(), config.layout->name()));
  }
  // A tied head is what the embedding is.
  const bool tied = config.architecture.tied && config.architecture.head == HeadKind::kLanguageModel;
  const auto format_of = [experts = formats_of_experts(config), layout = config.layout, family = config.family, tied](
                             const std::string& path, Role role) {
    if (role == Role::kExpert) {
      const auto found = experts.find(path);
      return found == experts.end() ? std::nullopt : std::optional(found->second);
    }
    const bool of_embedding = tied && path == "lm_head";
    return precision::packable(role)
               ? layout->format_of(stored_name(*family, of_embedding ? "embed_tokens" : path, "weight"),
                                   of_embedding ? Role::kEmbedding : role)
               : std::nullopt;
  };
  return {format_of, (config.folder / "config.json").string()};
}

BuiltModel build(const ModelRequest& request, std::optional<c10::Device> placement, const io::WeightsFolder* weights) {
  BuiltModel built;
  built.config = read_model_config(request.folder);
  if (request.new_head) require_classifier(built.config, request.root);
  if (request.resolvents) request.resolvents->put(built.config, request.root);
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
  built.policy = std::make_shared<precision::PrecisionPolicy>(dtype, request.device, source, request.rules,
                                                              packing_of(request, built.config));
  const Scope scope{built.policy.get(), request.root, placement, request.trainable};
  built.model = std::make_shared<Transformer>(scope, built.config.architecture);
  refuse_unsound_packing(request, built);
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

void ChosenResolvents::put(ModelConfig& config, const std::string& root) const {
  if (config.architecture.resolvent.heads == 0) {
    throw UsageError(
        fmt::format("[{}] {} is for models whose layers have a resolvent (resnet_bk), and {} is of {}, which has none: "
                    "leave it out",
                    root, source, (config.folder / "config.json").string(), config.architecture.family));
  }
  config.architecture.resolvent.int8 = int8;
}

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
  options.layout = built.config.layout.get();
  options.scales = request.scales;
  options.new_head = request.new_head;
  options.seed = request.seed;
  built.report = load_weights(*built.model, *built.config.family, weights, options);
  for (const std::string& note : weights.notes()) built.report.notes.push_back(note);
  return built;
}

}  // namespace limbeck::models
