#include "modules/adapters/adapter_hosts.h"

#include <string_view>

namespace limbeck::adapters {
namespace {

using models::Linear;
using models::WeightBinding;

constexpr std::string_view kWeight = ".weight";

std::string stem(const std::string& name) { return name.substr(0, name.size() - kWeight.size()); }

std::map<std::string, Linear*> linears_by_path(const models::BuiltModel& built) {
  std::map<std::string, Linear*> found;
  for (const auto& module : built.model->modules()) {
    if (auto* linear = dynamic_cast<Linear*>(module.get())) found[linear->path()] = linear;
  }
  return found;
}

std::map<std::string, AdapterHost> named_hosts(const models::BuiltModel& built, bool any_name) {
  const auto by_path = linears_by_path(built);
  std::map<std::string, AdapterHost> found, older;
  for (const WeightBinding& binding : built.report.bindings) {
    if (!binding.path.ends_with(kWeight) || binding.expert >= 0) continue;
    const auto linear = by_path.find(stem(binding.path));
    if (linear == by_path.end()) continue;
    const AdapterHost host{linear->second, binding.transposed};
    found[stem(binding.name)] = host;
    for (const std::string& name : binding.other_names) {
      if (any_name && name.ends_with(kWeight)) older.emplace(stem(name), host);
    }
  }
  // A tied head has no weight of its own in the file.
  const auto head = by_path.find(built.model->path() + ".lm_head");
  if (head != by_path.end()) found.emplace("lm_head", AdapterHost{head->second, false});
  found.merge(older);
  return found;
}

}  // namespace

std::map<std::string, AdapterHost> adapter_hosts(const models::BuiltModel& built) { return named_hosts(built, false); }

std::map<std::string, AdapterHost> adapter_hosts_by_any_name(const models::BuiltModel& built) {
  return named_hosts(built, true);
}

}  // namespace limbeck::adapters
