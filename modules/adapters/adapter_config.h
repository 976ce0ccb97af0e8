// What an adapter is, of whichever kind: enough to make it, to save it and to speak of it.
#pragma once
#include <string>
#include <variant>
#include <vector>

#include "modules/adapters/npt/create_npt.h"
#include "modules/adapters/peft/peft_config.h"
#include "modules/named_kind.h"

namespace limbeck::adapters {

using AdapterConfig = std::variant<PeftConfig, NptOptions>;

const std::vector<NamedKind>& adapter_kinds();  // those that a recipe can make

std::string kind_name(const AdapterConfig& config);  // "lora", "dora", "ia3", "npt"

double dropout_of(const AdapterConfig& config);
bool kind_has_dropout(const std::string& kind);

}  // namespace limbeck::adapters
