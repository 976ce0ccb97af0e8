#include "modules/adapters/folder/peft_folder.h"

#include <ATen/ops/empty_like.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <map>
#include <set>
#include <string_view>
#include <type_traits>

#include "modules/adapters/folder/added_folder.h"
#include "modules/adapters/folder/npt_folder.h"
#include "modules/adapters/folder/stored_values.h"
#include "modules/adapters/new_adapter.h"
#include "modules/adapters/npt/npt_config.h"
#include "modules/adapters/peft/adapter_names.h"
#include "modules/errors.h"
#include "modules/io/tensor_name.h"
#include "modules/nearest_name.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

namespace fs = std::filesystem;
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
          fmt::format("{}: tensor {}: wanted {}MODULE and one of .lora_A.weight, .lora_B.weight, .lora_embedding_A, "
                      ".lora_embedding_B, .lora_magnitude_vector, .ia3_l",
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

// What the file has for stacks goes from the nested names of their module to the stacks' own: only the configuration
// says which they are.
void name_stacks(std::map<std::string, Found>& modules, const PeftConfig& config,
                 const std::map<std::string, NamedHost>& hosts, const fs::path& folder) {
  const std::string file = (folder / kTensorFile).string();
  for (const auto& [module, found] : modules) {
    const auto host = hosts.find(module);
    if (host == hosts.end() || !host->second.is_stack()) continue;
    throw WeightsError(
        fmt::format("{}: {} is a stack of experts, whose tensors have the name of its module in a file of "
                    "PEFT's, and its own in target_parameters",
                    file, module));
  }
  std::set<std::string> stacks;
  for (const std::string& target : config.parameters) {
    bool found = false;
    for (const auto& [name, host] : hosts) {
      if (!host.is_stack() || (name != target && !name.ends_with("." + target))) continue;
      stacks.insert(name);
      found = true;
    }
    if (found) continue;
    throw WeightsError(
        fmt::format("{}: target_parameters {} names no stack of experts of this model: merge the "
                    "adapter in PEFT and load the merged model",
                    (folder / kConfigFile).string(), io::in_quotes(target)));
  }
  std::map<std::string, Found> named;
  for (const std::string& stack : stacks) {
    auto stored = modules.extract(stored_module(stack, stacks));
    if (stored.empty()) {
      throw WeightsError(fmt::format("{}: target_parameters names {}, but the file has no {}{}.lora_A.weight", file,
                                     stack, kPrefix, stored_module(stack, stacks)));
    }
    named.emplace(stack, std::move(stored.mapped()));
  }
  modules.merge(named);
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
    if (!target.is_meta()) take_stored(target, tensor, file, name);
  }
}

template <class Host>
int64_t experts_of(const Host&) {
  return 1;
}
int64_t experts_of(const models::ExpertStack& stack) { return stack.sizes().experts; }

class Loader {
 public:
  Loader(models::BuiltModel& built, const AdapterRequest& request, const PeftConfig& config)
      : built_(built), request_(request), config_(config), file_(request.folder / kTensorFile) {
    loaded_.config = config;
  }

  // Makes the adapter of one host, fills it, and puts it on.
  template <class Host>
  void load(const std::string& module, const Found& found, Host& host) {
    const std::string reason = misfit(config_, &host);
    if (!reason.empty()) throw WeightsError(fmt::format("{}: {} {}", file_.string(), module, reason));
    if (config_.kind == PeftKind::kLora) {
      const bool embedding = std::is_same_v<Host, models::Embedding>;
      require_rank(module, found, embedding ? "lora_embedding_A" : "lora_A", experts_of(host));
    }
    const auto adapter = make_adapter(
        {config_, adapter_scope(built_, host, request_.name, request_.trainable), module, scaled(found)}, host);
    for (const auto& entry : adapter->named_parameters(/*recurse=*/false)) {
      wanted(module, found, entry.key());
    }
    fill(*adapter, found, file_.string(), loaded_);
    host.add_adapter(request_.name, adapter);
    host.use_adapter(request_.name);
    ++loaded_.modules;
  }

  const LoadedAdapter& loaded() const { return loaded_; }

 private:
  const at::Tensor& wanted(const std::string& module, const Found& found, const std::string& parameter) const {
    const at::Tensor* tensor = found.find(parameter);
    if (tensor != nullptr) return *tensor;
    throw WeightsError(
        fmt::format("{}: {} has {} but no {}", file_.string(), module, found.parts.begin()->second.first, parameter));
  }

  // Before anything of that size is made.
  void require_rank(const std::string& module, const Found& found, const std::string& name, int64_t experts) const {
    const at::Tensor& a = wanted(module, found, name);
    if (a.dim() == 2 && a.size(0) == config_.rank_of(module) * experts) return;
    throw WeightsError(fmt::format("{}: {} has {} [{}], and adapter_config.json gives it rank {}", file_.string(),
                                   module, name, fmt::join(a.sizes(), ","), config_.rank_of(module)));
  }

  static Scaled scaled(const Found& found) {
    const at::Tensor* factors = found.find("ia3_l");
    return factors != nullptr && factors->dim() == 2 && factors->size(0) == 1 ? Scaled::kInput : Scaled::kOutput;
  }

  models::BuiltModel& built_;
  const AdapterRequest& request_;
  const PeftConfig& config_;
  fs::path file_;
  LoadedAdapter loaded_;
};

// As the model would hold it.
bool same_values(const at::Tensor& own, const at::Tensor& stored) {
  if (stored.sizes() != own.sizes()) return false;
  at::Tensor converted = at::empty_like(own, own.options().requires_grad(false));
  precision::cast_into(converted, stored);
  return converted.equal(own.detach());
}

template <class Host>
bool is_weight_of(const Host& host, const at::Tensor& stored) {
  if (!host.is_quantized()) return same_values(host.weight(), stored);
  const auto& matrix = host.packed()->matrix();
  return stored.sizes() == at::IntArrayRef({matrix.rows, matrix.columns}) &&
         precision::PackedWeight(stored, *host.precision().quantized, host.placement()) == *host.packed();
}

bool is_weight_of(const models::ExpertStack& host, const at::Tensor& stored) {
  if (!host.is_quantized()) return same_values(host.weight(), stored);
  const models::StackSizes& sizes = host.sizes();
  if (stored.sizes() != at::IntArrayRef({sizes.experts, sizes.out, sizes.in})) return false;
  int64_t row = 0;
  for (const precision::PackedWeight& part : host.packed_parts()) {
    const int64_t rows = part.stack().rows;
    for (int64_t expert = 0; expert < sizes.experts; ++expert) {
      const at::Tensor values = stored.select(0, expert).narrow(0, row, rows);
      if (!(precision::PackedWeight(values, part.format(), host.placement()) == part.member(expert))) return false;
    }
    row += rows;
  }
  return true;
}

// An adapter learnt beside these weights: over others it means nothing.
template <class Host>
void require_same_base(const Host& host, const Found& found, const std::string& file) {
  const auto& [name, stored] = found.base;
  if (name.empty() || host.placement().is_meta()) return;
  if (at::isFloatingType(stored.scalar_type()) && is_weight_of(host, stored)) return;
  throw WeightsError(
      fmt::format("{}: tensor {} is not the weight of the model for {}: the adapter was made for other "
                  "weights, or has changed them; merge it in PEFT and load the merged model",
                  file, name, host.path()));
}

// What is none of PEFT's either is refused by read_peft_config().
void refuse_misspelt(const std::string& type, const fs::path& folder) {
  std::vector<std::string> added;
  for (const AddedKind& kind : added_kinds()) added.push_back(kind.name);
  const std::string guess = offer_nearest(type, added, 1, {.before = "did you mean ", .behind = "?"});
  if (guess.empty()) return;
  throw WeightsError(
      fmt::format("{}: peft_type is {}, {}", (folder / kConfigFile).string(), io::in_quotes(type), guess));
}

}  // namespace

LoadedAdapter load_adapter(models::BuiltModel& built, const AdapterRequest& request) {
  const std::string type = io::JsonFile(request.folder / kConfigFile).string("peft_type");
  if (type == kNptType) return load_npt(built, request);
  if (const AddedKind* added = find_added(type)) return load_added(built, *added, request);
  refuse_misspelt(type, request.folder);
  const fs::path path = request.folder / kTensorFile;
  PeftConfig config = read_peft_config(request.folder / kConfigFile);
  const double stored_dropout = config.dropout;
  if (request.dropout && config.kind == PeftKind::kLora) config.dropout = *request.dropout;
  const auto hosts = adapter_hosts_by_any_name(built);
  auto modules = by_module(path);
  if (modules.empty()) throw WeightsError(path.string() + ": holds no tensor of an adapter");
  name_stacks(modules, config, hosts, request.folder);
  const std::vector<std::string> names = names_of(hosts);
  Loader loader(built, request, config);
  for (const auto& [module, found] : modules) {
    const auto named = hosts.find(module);
    if (named == hosts.end()) {
      throw WeightsError(fmt::format(
          "{}: module {} of tensor {} is no linear module, embedding or expert stack of this {} model{}", path.string(),
          module, found.parts.empty() ? found.base.first : found.parts.begin()->second.first,
          built.config.architecture.family, offer_nearest(module, names, 1, {.before = ", the nearest is "})));
    }
    std::visit(
        [&, &module = module, &found = found](auto* host) {
          if (!request.merged) require_same_base(*host, found, path.string());
          if (!found.parts.empty()) loader.load(module, found, *host);
        },
        named->second.host);
  }
  LoadedAdapter loaded = loader.loaded();
  loaded.stored_dropout = stored_dropout;
  return loaded;
}

}  // namespace limbeck::adapters
