#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {

void declare_optimizer_options(OptionTable& table) { table.group("Optimizer"); }

}  // namespace limbeck::recipe
