#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {

void declare_objective_options(OptionTable& table) { table.group("Objective"); }

}  // namespace limbeck::recipe
