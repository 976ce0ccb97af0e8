// New adapters of an added kind on a model.
#pragma once
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "modules/adapters/added/added_kind.h"
#include "modules/adapters/hosts/adapter_hosts.h"
#include "modules/adapters/peft/module_pattern.h"

namespace limbeck::adapters {

using AddedHost = std::variant<models::Linear*, models::Embedding*, models::ExpertStack*, models::Layer*>;

// Every module that could have one, by the names of adapter_hosts(); layers as "model.layers.0".
std::map<std::string, AddedHost> added_hosts(const models::BuiltModel& built);

struct NewAdded {
  AddedConfig config;
  // None: every linear module of attention and MLP, and what other mixers own, where the kind is for linear modules;
  // else every layer.
  std::vector<ModulePattern> targets;
  std::string name = "default";
  uint64_t seed = 0;
};

// On meta as well; gives the number of hosts. UsageError, before anything is changed, for a target that names none and
// for a host that the kind cannot be on.
int64_t create_added(models::BuiltModel& built, const NewAdded& wanted);

// One host's adapter, unfilled and not on it yet. placement: other than the host's.
std::shared_ptr<precision::ContractModule> make_added(const models::BuiltModel& built, const AddedConfig& config,
                                                      const AddedHost& host, const std::string& name, bool trainable,
                                                      std::optional<c10::Device> placement = std::nullopt);
// Puts what make_added() gave for this host on it, and uses it.
void put_added(const AddedHost& host, const std::string& name, const std::shared_ptr<precision::ContractModule>& made);
// The adapter of this name; null where the host has none.
const precision::ContractModule* added_on(const AddedHost& host, const std::string& name);

}  // namespace limbeck::adapters
