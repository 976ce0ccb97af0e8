// What ships with Limbeck, by name. Above the rooms that make these things: trainer/registry.h, which they include,
// knows none of them.
#pragma once
#include "trainer/registry.h"

namespace limbeck::build {

// One line a kind.
void register_builtins(Registries& registries);

}  // namespace limbeck::build
