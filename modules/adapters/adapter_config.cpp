#include "modules/adapters/adapter_config.h"

namespace limbeck::adapters {

std::vector<NamedKind> adapter_kinds() {
  std::vector<NamedKind> kinds = {
      {"lora", "W + s B A: a change of low rank (adapter.rslora: s = alpha / sqrt(rank))"},
      {"dora", "the same with a magnitude of its own for each row of the weight"},
      {"ia3", "a learned factor for each output, or input, of a linear module"},
      {"npt", "attention moves the MLP's gate token by token; no weight changes (adapter.npt: delta, outer)"}};
  for (const AddedKind& kind : added_kinds()) kinds.push_back({kind.name, kind.summary});
  return kinds;
}

std::string kind_name(const AdapterConfig& config) {
  if (const auto* added = std::get_if<AddedConfig>(&config)) return added->kind->name;
  const auto* peft = std::get_if<PeftConfig>(&config);
  return peft == nullptr ? "npt" : peft->kind_name();
}

double dropout_of(const AdapterConfig& config) {
  if (const auto* added = std::get_if<AddedConfig>(&config)) return added->sizes.dropout;
  const auto* peft = std::get_if<PeftConfig>(&config);
  return peft == nullptr ? 0 : peft->dropout;
}

bool kind_has_dropout(const std::string& kind) {
  const AddedKind* added = find_added(kind);
  return added != nullptr ? added->has_dropout : kind == "lora" || kind == "dora";
}

}  // namespace limbeck::adapters
