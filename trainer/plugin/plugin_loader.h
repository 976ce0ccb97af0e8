// Loads `--plugin LIB.so`: checks that it was built for this interface, then lets it register. Never unloaded, because
// what it registered points into it.
#pragma once
#include <string>

#include "trainer/registry.h"

namespace limbeck::plugin {

// `path` as typed, relative to the current directory. UsageError says what the library lacks.
void load_plugin(const std::string& path, Registries& registries);

}  // namespace limbeck::plugin
