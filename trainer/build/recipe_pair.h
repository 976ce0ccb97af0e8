// The pair of models that a recipe names: student with its adapter, and teacher, on meta or with their weights.
#pragma once
#include <memory>

#include "trainer/objective/model_pair.h"
#include "trainer/recipe/settings.h"

namespace limbeck::build {

// Reads teacher.*, student.*, adapter.* and precision.* of the recipe. The student is ready to train, the teacher not.
std::shared_ptr<objective::ModelPair> build_pair(const recipe::Settings& settings, objective::Materialize how);

}  // namespace limbeck::build
