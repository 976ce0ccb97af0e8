#include "modules/adapters/adapter_config.h"

namespace limbeck::adapters {

std::string kind_name(const AdapterConfig& config) {
  const auto* peft = std::get_if<PeftConfig>(&config);
  return peft == nullptr ? "npt" : peft->kind_name();
}

}  // namespace limbeck::adapters
