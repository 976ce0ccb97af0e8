// What an adapter is, of whichever kind: enough to make it, to save it and to speak of it.
#pragma once
#include <string>
#include <variant>
#include <vector>

#include "modules/adapters/added/added_kind.h"
#include "modules/adapters/npt/create_npt.h"
#include "modules/adapters/peft/peft_config.h"
#include "modules/named_kind.h"

namespace limbeck::adapters {

using AdapterConfig = std::variant<PeftConfig, NptOptions, AddedConfig>;

std::vector<NamedKind> adapter_kinds();  // those that a recipe can make, with those that were added

std::string kind_name(const AdapterConfig& config);  // "lora", "dora", "ia3", "npt", or an added one

double dropout_of(const AdapterConfig& config);
bool kind_has_dropout(const std::string& kind);

}  // namespace limbeck::adapters
