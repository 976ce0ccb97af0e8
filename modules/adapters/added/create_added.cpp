#include "modules/adapters/added/create_added.h"

#include <fmt/format.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "modules/errors.h"
#include "modules/nearest_name.h"

namespace limbeck::adapters {
namespace {

using models::Embedding;
using models::ExpertStack;
using models::Layer;
using models::Linear;
using precision::Role;

const auto& maker(const AddedKind& kind, const Linear*) { return kind.on_linear; }
const auto& maker(const AddedKind& kind, const Embedding*) { return kind.on_embedding; }
const auto& maker(const AddedKind& kind, const ExpertStack*) { return kind.on_experts; }
const auto& maker(const AddedKind& kind, const Layer*) { return kind.on_layer; }

const char* what_is(const Linear*) { return "a linear module"; }
const char* what_is(const Embedding*) { return "an embedding"; }
const char* what_is(const ExpertStack*) { return "a stack of experts"; }
const char* what_is(const Layer*) { return "a layer"; }

c10::Device placement_of(const Layer& layer) { return layer.parameters().front().device(); }
template <class Host>
c10::Device placement_of(const Host& host) {
  return host.placement();
}

bool is_default_target(const AddedKind& kind, const AddedHost& host) {
  if (!kind.on_linear) return std::holds_alternative<Layer*>(host);
  const auto* linear = std::get_if<Linear*>(&host);
  if (linear == nullptr) return false;
  const Role role = (*linear)->role();
  return role == Role::kAttention || role == Role::kMixer || role == Role::kBkCore || role == Role::kMlp;
}

void require_named(const ModulePattern& target, const std::map<std::string, AddedHost>& hosts) {
  const std::vector<std::string> names = names_of(hosts);
  if (std::any_of(names.begin(), names.end(), [&](const auto& name) { return target.names(name); })) return;
  throw UsageError(fmt::format(
      "adapter.target {} names no linear module, embedding, expert stack or layer: {}", target.text(),
      offer_nearest(target.text(), names, 3,
                    {.before = "the nearest are ", .otherwise = "'limbeck check RECIPE' lists its modules"})));
}

std::map<std::string, AddedHost> targets_of(const models::BuiltModel& built, const NewAdded& wanted) {
  const auto every = added_hosts(built);
  for (const ModulePattern& target : wanted.targets) require_named(target, every);
  std::map<std::string, AddedHost> found;
  for (const auto& [name, host] : every) {
    const bool named = std::any_of(wanted.targets.begin(), wanted.targets.end(),
                                   [&, &module = name](const ModulePattern& target) { return target.names(module); });
    if (wanted.targets.empty() ? is_default_target(*wanted.config.kind, host) : named) found.emplace(name, host);
  }
  if (!found.empty()) return found;
  throw UsageError(fmt::format("no module of this {} model is one that {} adapts by itself: name modules",
                               built.config.architecture.family, wanted.config.kind->name));
}

}  // namespace

std::map<std::string, AddedHost> added_hosts(const models::BuiltModel& built) {
  std::map<std::string, AddedHost> found;
  for (const auto& [name, named] : adapter_hosts(built)) {
    std::visit([&, &module = name](auto* host) { found.emplace(module, host); }, named.host);
  }
  const size_t root = built.model->path().size() + 1;
  for (const auto& layer : built.model->layers()) {
    found.emplace(built.config.family->prefix + layer->path().substr(root), layer.get());
  }
  return found;
}

std::shared_ptr<precision::ContractModule> make_added(const models::BuiltModel& built, const AddedConfig& config,
                                                      const AddedHost& any, const std::string& name, bool trainable,
                                                      std::optional<c10::Device> placement) {
  const auto make = [&](const auto* host) -> std::shared_ptr<precision::ContractModule> {
    const auto& made_by = maker(*config.kind, host);
    if (!made_by) {
      throw UsageError(
          fmt::format("[{}] is {}, on which there is no {}", host->path(), what_is(host), config.kind->name));
    }
    const precision::Scope scope{built.policy.get(), host->path() + "." + name,
                                 placement ? *placement : placement_of(*host), trainable};
    auto made = made_by(scope, config.sizes, *host);
    if (made == nullptr)
      throw UsageError(fmt::format("[{}] {} made no adapter for it", host->path(), config.kind->name));
    return made;
  };
  return std::visit(make, any);
}

void put_added(const AddedHost& any, const std::string& name, const std::shared_ptr<precision::ContractModule>& made) {
  const auto put = [&](auto* host) {
    using Adapter = std::remove_const_t<std::remove_pointer_t<decltype(host->adapter())>>;
    host->add_adapter(name, std::dynamic_pointer_cast<Adapter>(made));
    host->use_adapter(name);
  };
  std::visit(put, any);
}

const precision::ContractModule* added_on(const AddedHost& any, const std::string& name) {
  return std::visit([&](const auto* host) -> const precision::ContractModule* { return host->adapter(name); }, any);
}

int64_t create_added(models::BuiltModel& built, const NewAdded& wanted) {
  const auto hosts = targets_of(built, wanted);
  std::vector<std::pair<AddedHost, std::shared_ptr<precision::ContractModule>>> made;
  for (const auto& [name, host] : hosts) {
    made.emplace_back(host, make_added(built, wanted.config, host, wanted.name, /*trainable=*/true));
  }
  for (const auto& [any, adapter] : made) {
    put_added(any, wanted.name, adapter);
    const auto fill = [&](auto* host) {
      using Adapter = std::remove_const_t<std::remove_pointer_t<decltype(host->adapter())>>;
      if (!adapter->placement().is_meta()) std::dynamic_pointer_cast<Adapter>(adapter)->initialize(*host, wanted.seed);
    };
    std::visit(fill, any);
  }
  return static_cast<int64_t>(hosts.size());
}

}  // namespace limbeck::adapters
