#include "modules/adapters/peft_folder.h"

#include <ATen/ops/empty_like.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <map>
#include <memory>
#include <string_view>

#include "modules/adapters/learned_scale.h"
#include "modules/adapters/low_rank.h"
#include "modules/adapters/peft_config.h"
#include "modules/errors.h"
#include "modules/nearest_name.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

namespace fs = std::filesystem;
using models::Linear;
using precision::ContractModule;

constexpr std::string_view kPrefix = "base_model.model.";

struct Part {
  std::string_view suffix, parameter;
};
constexpr std::string_view kBase = "base_layer";
constexpr std::array<Part, 6> kParts = {{{".base_layer.weight", kBase},
                                         {".lora_A.weight", "lora_A"},
                                         {".lora_B.weight", "lora_B"},
                                         {".lora_magnitude_vector", "lora_magnitude_vector"},
                                         {".lora_magnitude_vector.weight", "lora_magnitude_vector"},
                                         {".ia3_l", "ia3_l"}}};

// Every linear module by the names that a Hugging Face model may have for it.
std::map<std::string, Linear*> linears_of(const models::BuiltModel& built) {
  std::map<std::string, Linear*> by_path, found;
  for (const auto& module : built.model->modules()) {
    if (auto* linear = dynamic_cast<Linear*>(module.get())) by_path[linear->path()] = linear;
  }
  constexpr std::string_view kWeight = ".weight";
  const auto stem = [&](const std::string& name) { return name.substr(0, name.size() - kWeight.size()); };
  for (const models::WeightBinding& binding : built.report.bindings) {
    if (!binding.path.ends_with(kWeight) || binding.expert >= 0) continue;
    const auto linear = by_path.find(stem(binding.path));
    if (linear == by_path.end()) continue;
    for (const std::string& name : binding.other_names) {
      if (name.ends_with(kWeight)) found.emplace(stem(name), linear->second);
    }
    found[stem(binding.name)] = linear->second;
  }
  // A tied head has no weight of its own in the file.
  const auto head = by_path.find(built.model->path() + ".lm_head");
  if (head != by_path.end()) found.emplace("lm_head", head->second);
  return found;
}

// What the file holds for one module: tensor by parameter, and its name in the file.
struct Found {
  std::map<std::string, std::pair<std::string, at::Tensor>> parts;
  std::pair<std::string, at::Tensor> base = {};  // the host's weight, which PEFT stores of embeddings and heads
  const at::Tensor* find(const std::string& parameter) const {
    const auto part = parts.find(parameter);
    return part == parts.end() ? nullptr : &part->second.second;
  }
};

std::map<std::string, Found> by_module(const fs::path& path) {
  std::map<std::string, Found> modules;
  const io::SafetensorsFile file(path);
  for (const io::TensorEntry& entry : file.entries()) {
    const Part* part = nullptr;
    for (const Part& known : kParts) {
      if (entry.name.starts_with(kPrefix) && entry.name.ends_with(known.suffix)) part = &known;
    }
    if (part == nullptr || entry.name.size() <= kPrefix.size() + part->suffix.size()) {
      throw WeightsError(
          fmt::format("{}: tensor {}: wanted {}MODULE and one of .lora_A.weight, .lora_B.weight, "
                      ".lora_magnitude_vector, .ia3_l: adapters of embeddings and of expert stacks are "
                      "not supported yet",
                      path.string(), entry.name, kPrefix));
    }
    const std::string module =
        entry.name.substr(kPrefix.size(), entry.name.size() - kPrefix.size() - part->suffix.size());
    Found& found = modules[module];
    auto& place = part->parameter == kBase ? found.base : found.parts[std::string(part->parameter)];
    place = {entry.name, file.read(entry, io::NonFinite::kRefuse)};
  }
  return modules;
}

// The adapter for one module, with parameters that are yet to be filled.
class Maker {
 public:
  Maker(const PeftConfig& config, const AdapterRequest& request, const models::BuiltModel& built, std::string file)
      : config_(config), request_(request), built_(built), file_(std::move(file)) {}

  std::shared_ptr<models::LinearAdapter> make(const std::string& module, const Found& found, const Linear& host) const {
    const precision::Scope scope{built_.policy.get(), host.path() + "." + request_.name, host.placement(),
                                 request_.trainable};
    const int64_t out = host.out_features(), in = host.in_features();
    if (config_.kind() == PeftKind::kIa3) {
      const at::Tensor& factors = wanted(module, found, "ia3_l");
      const Scaled what = factors.dim() == 2 && factors.size(0) == 1 ? Scaled::kInput : Scaled::kOutput;
      return std::make_shared<LearnedScale>(scope, host.precision(), what, what == Scaled::kInput ? in : out);
    }
    wanted(module, found, "lora_B");
    const at::Tensor& a = wanted(module, found, "lora_A");
    const LowRankShape shape{in, out, config_.rank(module), config_.scale(module), config_.dora()};
    if (shape.dora) wanted(module, found, "lora_magnitude_vector");
    if (a.dim() != 2 || a.size(0) != shape.rank) {
      throw WeightsError(fmt::format("{}: {} has lora_A [{}], and adapter_config.json gives it rank {}", file_, module,
                                     fmt::join(a.sizes(), ","), shape.rank));
    }
    return std::make_shared<LowRank>(scope, host.precision(), shape);
  }

 private:
  const at::Tensor& wanted(const std::string& module, const Found& found, const std::string& parameter) const {
    const at::Tensor* tensor = found.find(parameter);
    if (tensor != nullptr) return *tensor;
    throw WeightsError(
        fmt::format("{}: {} has {} but no {}", file_, module, found.parts.begin()->second.first, parameter));
  }

  const PeftConfig& config_;
  const AdapterRequest& request_;
  const models::BuiltModel& built_;
  std::string file_;
};

// An adapter learnt beside these weights: over others it means nothing.
void require_same_base(const Linear& host, const Found& found, const std::string& file) {
  const auto& [name, stored] = found.base;
  if (name.empty()) return;
  bool same = stored.sizes() == at::IntArrayRef({host.out_features(), host.in_features()}) &&
              at::isFloatingType(stored.scalar_type());
  if (same && host.is_quantized()) {
    const auto format = *host.precision().quantized;
    same = quantization::QuantizedWeight(stored, format, host.placement()) == host.quantized_weight();
  } else if (same) {
    const at::Tensor& own = host.weight();
    at::Tensor converted = at::empty_like(own, own.options().requires_grad(false));
    precision::cast_into(converted, stored);
    same = converted.equal(own.detach());
  }
  if (same) return;
  throw WeightsError(
      fmt::format("{}: tensor {} is not the weight of the model for {}: the adapter was made for other "
                  "weights, or has changed them; merge it in PEFT and load the merged model",
                  file, name, host.path()));
}

void fill(const ContractModule& adapter, const Found& found, const std::string& file, LoadedAdapter& loaded) {
  for (const auto& [parameter, stored] : found.parts) {
    const auto& [name, tensor] = stored;
    if (!adapter.has_parameter(parameter)) {
      throw WeightsError(fmt::format("{}: tensor {}: adapter_config.json says no word of it", file, name));
    }
    at::Tensor target = adapter.parameter(parameter).detach();
    if (target.sizes() != tensor.sizes() || !at::isFloatingType(tensor.scalar_type())) {
      throw WeightsError(fmt::format("{}: tensor {} is {} [{}], wanted [{}] for {}: is it an adapter of this model?",
                                     file, name, precision::dtype_name(tensor.scalar_type()),
                                     fmt::join(tensor.sizes(), ","), fmt::join(target.sizes(), ","), adapter.path()));
    }
    loaded.cast_tensors += tensor.scalar_type() != target.scalar_type() ? 1 : 0;
    precision::cast_into(target, tensor);
    if (!precision::move(target, c10::kCPU).isfinite().all().item<bool>()) {
      throw WeightsError(
          fmt::format("{}: tensor {} is not finite in {}", file, name, precision::dtype_name(target.scalar_type())));
    }
    loaded.weights.push_back({name, adapter.parameter(parameter)});
  }
}

}  // namespace

LoadedAdapter load_adapter(models::BuiltModel& built, const AdapterRequest& request) {
  const fs::path path = request.folder / "adapter_model.safetensors";
  const PeftConfig config(request.folder / "adapter_config.json");
  const auto linears = linears_of(built);
  const auto modules = by_module(path);
  if (modules.empty()) throw WeightsError(path.string() + ": holds no tensor of an adapter");
  std::vector<std::string> names;
  for (const auto& [name, linear] : linears) names.push_back(name);
  LoadedAdapter loaded;
  loaded.kind = config.kind() == PeftKind::kIa3 ? "ia3" : config.dora() ? "dora" : "lora";
  const Maker maker(config, request, built, path.string());
  for (const auto& [module, found] : modules) {
    const auto host = linears.find(module);
    if (host == linears.end()) {
      throw WeightsError(
          fmt::format("{}: module {} of tensor {} is no linear module of this {} model, the nearest is {}",
                      path.string(), module, found.parts.empty() ? found.base.first : found.parts.begin()->second.first,
                      built.config.architecture.family, fmt::join(nearest_names(module, names, 1), "")));
    }
    require_same_base(*host->second, found, path.string());
    if (found.parts.empty()) continue;
    const auto adapter = maker.make(module, found, *host->second);
    fill(*adapter, found, path.string(), loaded);
    host->second->add_adapter(request.name, adapter);
    host->second->use_adapter(request.name);
    ++loaded.modules;
  }
  return loaded;
}

}  // namespace limbeck::adapters
