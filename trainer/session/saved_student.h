// The student of a session as a folder that others read.
#pragma once
#include <filesystem>

#include "modules/io/safetensors.h"
#include "trainer/objective/distillation.h"

namespace limbeck::session {

// The student as a Hugging Face folder (replacing an older one), its adapter as a PEFT folder where that is what
// trains; what the objective has beside it in the same folder. `tokenizer`: whose files stand beside it; empty: those
// of the student's own folder. before: see modules/io/safetensors.h.
void save_student(const objective::Distillation& objective, const std::filesystem::path& folder,
                  const std::filesystem::path& tokenizer, const io::BeforeTensor& before);

}  // namespace limbeck::session
