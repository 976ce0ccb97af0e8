#include "trainer/registry.h"

#include "modules/models/family.h"

namespace limbeck {

void register_builtins(Registries& registries) {
  registries.attach(std::make_unique<BorrowedNames>("models", [] { return models::family_names(); }));
}

}  // namespace limbeck
