#include "modules/adapters/peft_folder.h"

#include <ATen/ops/empty_like.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <map>
#include <memory>
#include <string_view>

#include "modules/adapters/adapter_names.h"
#include "modules/adapters/new_adapter.h"
#include "modules/adapters/npt_folder.h"
#include "modules/errors.h"
#include "modules/nearest_name.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

namespace fs = std::filesystem;
using models::Linear;
using precision::ContractModule;

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
    const AdapterPart* part = nullptr;
    for (const AdapterPart& known : kParts) {
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
    const precision::Scope scope = adapter_scope(built_, host, request_.name, request_.trainable);
    if (config_.kind == PeftKind::kIa3) {
      const at::Tensor& factors = wanted(module, found, "ia3_l");
      const Scaled what = factors.dim() == 2 && factors.size(0) == 1 ? Scaled::kInput : Scaled::kOutput;
      return make_learned_scale(scope, host, what);
    }
    wanted(module, found, "lora_B");
    const at::Tensor& a = wanted(module, found, "lora_A");
    if (config_.dora) wanted(module, found, "lora_magnitude_vector");
    if (a.dim() != 2 || a.size(0) != config_.rank_of(module)) {
      throw WeightsError(fmt::format("{}: {} has lora_A [{}], and adapter_config.json gives it rank {}", file_, module,
                                     fmt::join(a.sizes(), ","), config_.rank_of(module)));
    }
    return make_low_rank(config_, scope, host, module);
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
  if (name.empty() || host.placement().is_meta()) return;
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
    loaded.weights.push_back({name, adapter.parameter(parameter)});
    if (target.is_meta()) continue;
    precision::cast_into(target, tensor);
    if (!precision::move(target, c10::kCPU).isfinite().all().item<bool>()) {
      throw WeightsError(
          fmt::format("{}: tensor {} is not finite in {}", file, name, precision::dtype_name(target.scalar_type())));
    }
  }
}

}  // namespace

LoadedAdapter load_adapter(models::BuiltModel& built, const AdapterRequest& request) {
  if (is_npt_folder(request.folder)) return load_npt(built, request);
  const fs::path path = request.folder / "adapter_model.safetensors";
  const PeftConfig config = read_peft_config(request.folder / "adapter_config.json");
  const auto hosts = adapter_hosts_by_any_name(built);
  const auto modules = by_module(path);
  if (modules.empty()) throw WeightsError(path.string() + ": holds no tensor of an adapter");
  std::vector<std::string> names;
  for (const auto& [name, host] : hosts) names.push_back(name);
  LoadedAdapter loaded;
  loaded.config = config;
  const Maker maker(config, request, built, path.string());
  for (const auto& [module, found] : modules) {
    const auto host = hosts.find(module);
    if (host == hosts.end()) {
      throw WeightsError(
          fmt::format("{}: module {} of tensor {} is no linear module of this {} model, the nearest is {}",
                      path.string(), module, found.parts.empty() ? found.base.first : found.parts.begin()->second.first,
                      built.config.architecture.family, fmt::join(nearest_names(module, names, 1), "")));
    }
    Linear& linear = *host->second.linear;
    if (!request.merged) require_same_base(linear, found, path.string());
    if (found.parts.empty()) continue;
    const auto adapter = maker.make(module, found, linear);
    fill(*adapter, found, path.string(), loaded);
    linear.add_adapter(request.name, adapter);
    linear.use_adapter(request.name);
    ++loaded.modules;
  }
  return loaded;
}

}  // namespace limbeck::adapters
