#include "modules/adapters/hosts/adapter_hosts.h"

#include <string_view>

namespace limbeck::adapters {
namespace {

using models::WeightBinding;

constexpr std::string_view kWeight = ".weight", kDown = ".down_proj";

std::string without(const std::string& name, std::string_view ending) {
  return name.substr(0, name.size() - ending.size());
}

std::map<std::string, AnyHost> modules_by_path(const models::BuiltModel& built) {
  std::map<std::string, AnyHost> found;
  for (const auto& module : built.model->modules()) {
    if (auto* linear = dynamic_cast<models::Linear*>(module.get())) found[linear->path()] = linear;
    if (auto* embedding = dynamic_cast<models::Embedding*>(module.get())) found[embedding->path()] = embedding;
  }
  return found;
}

// In transformers they are parameters of a module; their own folders have a tensor for each expert.
void add_stacks(const models::BuiltModel& built, std::map<std::string, NamedHost>& found) {
  const size_t root = built.model->path().size() + 1;
  for (const auto& module : built.model->modules()) {
    auto* stack = dynamic_cast<models::ExpertStack*>(module.get());
    if (stack != nullptr) found[built.config.family->prefix + stack->path().substr(root)] = {stack};
  }
}

std::map<std::string, NamedHost> named_hosts(const models::BuiltModel& built, bool any_name) {
  const auto by_path = modules_by_path(built);
  std::map<std::string, NamedHost> found, older;
  for (const WeightBinding& binding : built.report.bindings) {
    if (!binding.path.ends_with(kWeight) || binding.expert >= 0) continue;
    const auto module = by_path.find(without(binding.path, kWeight));
    if (module == by_path.end()) continue;
    const NamedHost host{module->second, binding.transposed};
    found[without(binding.name, kWeight)] = host;
    for (const std::string& name : binding.other_names) {
      if (any_name && name.ends_with(kWeight)) older.emplace(without(name, kWeight), host);
    }
  }
  // A tied head has no weight of its own in the file.
  const auto head = by_path.find(built.model->path() + ".lm_head");
  if (head != by_path.end()) found.emplace(models::stored_head_name(*built.config.family), NamedHost{head->second});
  add_stacks(built, found);
  found.merge(older);
  return found;
}

}  // namespace

std::map<std::string, NamedHost> adapter_hosts(const models::BuiltModel& built) { return named_hosts(built, false); }

std::map<std::string, NamedHost> adapter_hosts_by_any_name(const models::BuiltModel& built) {
  return named_hosts(built, true);
}

std::string stored_module(const std::string& stack, const std::set<std::string>& adapted_stacks) {
  const std::string module = stack.substr(0, stack.rfind('.'));
  if (stack.ends_with(kDown)) return module;
  return adapted_stacks.contains(module + std::string(kDown)) ? module + ".base_layer" : module;
}

}  // namespace limbeck::adapters
