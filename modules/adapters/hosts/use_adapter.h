// Which of a model's adapters works now.
#pragma once
#include <string>

#include "modules/models/weights/load_model.h"

namespace limbeck::adapters {

// The one of this name on every module that has it, none on the others; "": none at all. Nothing is read or converted.
// UsageError when no module has it.
void use_adapter(const models::BuiltModel& built, const std::string& name);

}  // namespace limbeck::adapters
