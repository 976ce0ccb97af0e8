#include "trainer/build/builtins.h"

#include "modules/adapters/adapter_config.h"
#include "modules/models/family/family.h"
#include "modules/quantization/quantized_formats.h"
#include "trainer/objective/head/divergence.h"

namespace limbeck::build {

void register_builtins(Registries& registries) {
  registries.attach(std::make_unique<BorrowedNames>("models", models::family_names));
  objective::register_divergences(registries);
  registries.attach(std::make_unique<BorrowedNames>("adapters", adapters::adapter_kinds));
  registries.attach(std::make_unique<BorrowedNames>("quantizers", quantization::quantized_formats));
  // One, chosen by nothing yet: trainer/optim/optimizer.h.
  registries.attach(std::make_unique<BorrowedNames>("optimizers", [] {
    return std::vector<NamedKind>{{"adamw", ""}};
  }));
}

}  // namespace limbeck::build
