// projectors.safetensors: what an objective has beside its student, in the folder of a saved student.
#pragma once
#include <filesystem>

#include "modules/io/safetensors.h"
#include "trainer/objective/distillation.h"

namespace limbeck::objective {

// Nothing where the objective has none. before: see modules/io/safetensors.h.
void save_projectors(const Distillation& objective, const std::filesystem::path& folder,
                     const io::BeforeTensor& before);

// Fills them from a folder that was saved so. WeightsError when one is missing or differs in shape.
void load_projectors(Distillation& objective, const std::filesystem::path& folder);

}  // namespace limbeck::objective
