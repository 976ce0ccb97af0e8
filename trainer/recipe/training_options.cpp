#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {

void declare_training_options(OptionTable& table) { table.group("Training"); }

}  // namespace limbeck::recipe
