#include "trainer/registry.h"

#include "modules/models/family.h"
#include "trainer/objective/divergence.h"

namespace limbeck {

void register_builtins(Registries& registries) {
  registries.attach(std::make_unique<BorrowedNames>("models", [] { return models::family_names(); }));
  objective::register_divergences(registries);
  // One, chosen by nothing yet: trainer/optim/optimizer.h.
  registries.attach(std::make_unique<BorrowedNames>("optimizers", [] { return std::vector<std::string>{"adamw"}; }));
}

}  // namespace limbeck
