// Whose weights an adapter is merged into, or taken out of.
#pragma once
#include <string>
#include <vector>

#include "modules/models/layers.h"
#include "modules/models/load_model.h"

namespace limbeck::adapters {

// The linear modules whose adapters work now. UsageError, by name, for an adapter of a whole layer, which changes no
// weight, and for a head that shares its weight with the embedding.
std::vector<models::Linear*> adapted_linears(const models::BuiltModel& built);

// Every linear module.
std::vector<models::Linear*> linears_of(const models::BuiltModel& built);

// The name of the adapter that works on this module; "": none does.
std::string working_adapter(const models::Linear& linear);

}  // namespace limbeck::adapters
