// Whether the tokens that data.masking hides are what the models predict: refused before a batch is made.
#pragma once
#include "modules/models/weights/load_model.h"
#include "trainer/objective/weights.h"
#include "trainer/recipe/settings.h"

namespace limbeck::agreement {

// teacher: the one that is compared with, or null. UsageError says what to set.
void require_fitting_masks(const recipe::Settings& settings, const objective::TermWeights& weights,
                           const models::BuiltModel& student, const models::BuiltModel* teacher);

}  // namespace limbeck::agreement
