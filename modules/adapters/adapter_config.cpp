#include "modules/adapters/adapter_config.h"

namespace limbeck::adapters {

const std::vector<NamedKind>& adapter_kinds() {
  static const std::vector<NamedKind> kinds = {
      {"lora", "W + s B A: a change of low rank (adapter.rslora: s = alpha / sqrt(rank))"},
      {"dora", "the same with a magnitude of its own for each row of the weight"},
      {"ia3", "a learned factor for each output, or input, of a linear module"},
      {"npt", "attention moves the MLP's gate token by token; no weight changes (adapter.npt: delta, outer)"}};
  return kinds;
}

std::string kind_name(const AdapterConfig& config) {
  const auto* peft = std::get_if<PeftConfig>(&config);
  return peft == nullptr ? "npt" : peft->kind_name();
}

double dropout_of(const AdapterConfig& config) {
  const auto* peft = std::get_if<PeftConfig>(&config);
  return peft == nullptr ? 0 : peft->dropout;
}

bool kind_has_dropout(const std::string& kind) { return kind == "lora" || kind == "dora"; }

}  // namespace limbeck::adapters
