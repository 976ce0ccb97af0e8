#include "modules/adapters/folder/added_folder.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <utility>

#include "modules/adapters/added/create_added.h"
#include "modules/adapters/folder/stored_values.h"
#include "modules/adapters/peft/adapter_names.h"
#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/tensor_name.h"
#include "modules/nearest_name.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using precision::ContractModule;

constexpr double kMostScale = 1e9;
constexpr std::array<std::string_view, 8> kKeys = {
    "alpha", "base_model_name_or_path", "dropout", "inference_mode", "peft_type", "r", "scale", "target_modules"};

std::string stored_name(const AddedKind& kind, const std::string& module, const std::string& parameter) {
  return fmt::format("{}{}.{}.{}", kPrefix, module, kind.name, parameter);
}

AddedConfig read_config(const io::JsonFile& file, const AddedKind& kind, const AdapterRequest& request) {
  for (const auto& entry : file.value().items()) {
    if (std::find(kKeys.begin(), kKeys.end(), entry.key()) != kKeys.end()) continue;
    throw WeightsError(fmt::format("{}: key {} is none of a {} adapter's: wanted {}", file.where(),
                                   io::in_quotes(entry.key()), kind.name, fmt::join(kKeys, ", ")));
  }
  AddedConfig config{&kind, {}};
  config.sizes.rank = file.integer("r", 1, kMostRank);
  config.sizes.alpha = file.number("alpha", -kMostAlpha, kMostAlpha);
  config.sizes.scale = file.number("scale", -kMostScale, kMostScale);
  config.sizes.dropout = file.number("dropout", 0, 1);
  if (config.sizes.dropout == 1) throw WeightsError(file.where() + ": dropout is 1, which leaves nothing: wanted less");
  if (request.dropout && kind.has_dropout) config.sizes.dropout = *request.dropout;
  return config;
}

// The hosts that the folder names, in their order there.
std::vector<std::pair<std::string, AddedHost>> named_hosts(const io::JsonFile& file, const models::BuiltModel& built) {
  const json& list = file.value().contains("target_modules") ? file.value()["target_modules"] : json();
  const bool strings = list.is_array() && !list.empty() &&
                       std::all_of(list.begin(), list.end(), [](const json& one) { return one.is_string(); });
  if (!strings) throw WeightsError(file.where() + ": target_modules is no list of modules, wanted their whole names");
  const auto every = added_hosts(built);
  const std::vector<std::string> known = names_of(every);
  std::set<std::string> seen;
  std::vector<std::pair<std::string, AddedHost>> hosts;
  for (const json& one : list) {
    const auto& module = one.get_ref<const std::string&>();
    const auto host = every.find(module);
    if (host == every.end()) {
      throw WeightsError(fmt::format("{}: target_modules names {}, which this {} model has not{}", file.where(),
                                     io::in_quotes(module), built.config.architecture.family,
                                     offer_nearest(module, known, 1, {.before = ": the nearest is "})));
    }
    if (!seen.insert(module).second) {
      throw WeightsError(fmt::format("{}: target_modules names {} twice", file.where(), io::in_quotes(module)));
    }
    hosts.emplace_back(module, host->second);
  }
  return hosts;
}

class AddedLoader {
 public:
  AddedLoader(const models::BuiltModel& built, const AddedKind& kind, const AdapterRequest& request)
      : built_(built),
        kind_(kind),
        request_(request),
        config_file_(request.folder / kConfigFile),
        tensors_(request.folder / kTensorFile) {
    loaded_.config = config_ = read_config(config_file_, kind, request);
    loaded_.stored_dropout = config_file_.number("dropout", 0, 1);
    for (const io::TensorEntry& entry : tensors_.entries()) names_.push_back(entry.name);
  }

  LoadedAdapter load() {
    const auto hosts = named_hosts(config_file_, built_);
    require_exactly(hosts);
    std::vector<std::shared_ptr<ContractModule>> made;
    for (const auto& [module, host] : hosts) {
      made.push_back(make_added(built_, config_, host, request_.name, request_.trainable));
      fill(module, *made.back());
    }
    for (size_t i = 0; i < hosts.size(); ++i) put_added(hosts[i].second, request_.name, made[i]);
    loaded_.modules = static_cast<int64_t>(hosts.size());
    return loaded_;
  }

 private:
  // Every tensor that the adapters want is there in its shape, and no other: known from adapters on meta, before
  // anything of that size is made.
  void require_exactly(const std::vector<std::pair<std::string, AddedHost>>& hosts) const {
    std::set<std::string> unused(names_.begin(), names_.end());
    for (const auto& [module, host] : hosts) {
      const auto wanted = made_on_meta(host);
      for (const auto& entry : wanted->named_parameters(/*recurse=*/false)) {
        unused.erase(stored(module, entry.key(), entry.value()).name);
      }
    }
    if (unused.empty()) return;
    throw WeightsError(fmt::format("{}: {} tensors have no place in this {} adapter: {}", tensors_.path().string(),
                                   unused.size(), kind_.name, fmt::join(unused, ", ")));
  }

  std::shared_ptr<ContractModule> made_on_meta(const AddedHost& host) const {
    try {
      return make_added(built_, config_, host, request_.name, /*trainable=*/false, c10::Device(c10::kMeta));
    } catch (const UsageError& error) {  // what the folder says is no choice of the user's
      throw WeightsError(fmt::format("{}: {}", config_file_.where(), error.what()));
    }
  }

  const io::TensorEntry& stored(const std::string& module, const std::string& parameter, const at::Tensor& like) const {
    const std::string name = stored_name(kind_, module, parameter);
    const io::TensorEntry* entry = tensors_.find(name);
    if (entry == nullptr) {
      throw WeightsError(fmt::format("{}: tensor {} is missing{}", tensors_.path().string(), name,
                                     offer_nearest(name, names_, 1, {.before = " (nearest: ", .behind = ")"})));
    }
    if (at::isFloatingType(entry->dtype) && at::IntArrayRef(entry->shape) == like.sizes()) return *entry;
    throw WeightsError(fmt::format("{}: tensor {} is {} [{}], wanted [{}]: is it an adapter of another model?",
                                   tensors_.path().string(), name, precision::dtype_name(entry->dtype),
                                   fmt::join(entry->shape, ","), fmt::join(like.sizes(), ",")));
  }

  void fill(const std::string& module, const ContractModule& adapter) {
    const at::NoGradGuard no_gradient;
    for (const auto& one : adapter.named_parameters(/*recurse=*/false)) {
      const io::TensorEntry& entry = stored(module, one.key(), one.value());
      loaded_.weights.push_back({entry.name, one.value()});
      at::Tensor target = one.value().detach();
      loaded_.cast_tensors += entry.dtype != target.scalar_type() ? 1 : 0;
      if (target.is_meta()) continue;
      take_stored(target, tensors_.read(entry, io::NonFinite::kRefuse), tensors_.path().string(), entry.name);
    }
  }

  const models::BuiltModel& built_;
  const AddedKind& kind_;
  const AdapterRequest& request_;
  io::JsonFile config_file_;
  io::SafetensorsFile tensors_;
  AddedConfig config_;
  std::vector<std::string> names_;
  LoadedAdapter loaded_;
};

}  // namespace

LoadedAdapter load_added(models::BuiltModel& built, const AddedKind& kind, const AdapterRequest& request) {
  return AddedLoader(built, kind, request).load();
}

void save_added(const models::BuiltModel& built, const AddedConfig& config, const std::string& name,
                const fs::path& folder, const io::BeforeTensor& before) {
  io::NamedTensors tensors;
  json modules = json::array();
  for (const auto& [module, host] : added_hosts(built)) {
    const ContractModule* adapter = added_on(host, name);
    if (adapter == nullptr) continue;
    modules.push_back(module);
    for (const auto& entry : adapter->named_parameters(/*recurse=*/false)) {
      tensors.emplace_back(stored_name(*config.kind, module, entry.key()), entry.value().detach());
    }
  }
  if (tensors.empty()) throw UsageError(folder.string() + ": there is no adapter " + name + " that could be saved");
  const json file = {{"peft_type", config.kind->name}, {"base_model_name_or_path", built.config.folder.string()},
                     {"inference_mode", true},         {"r", config.sizes.rank},
                     {"alpha", config.sizes.alpha},    {"dropout", config.sizes.dropout},
                     {"scale", config.sizes.scale},    {"target_modules", modules}};
  io::write_safetensors(folder / kTensorFile, tensors, {{"format", "pt"}}, before);
  // Last, because it is what makes the tensors an adapter.
  io::write_atomically(folder / kConfigFile, file.dump(2) + "\n");
}

}  // namespace limbeck::adapters
