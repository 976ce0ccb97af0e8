// The adapter that a recipe trains on its student.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/adapter_config.h"
#include "modules/models/weights/load_model.h"
#include "trainer/build/adapter_options.h"

namespace limbeck::build {

// Puts it on the student, whose own weights do not train; none where the options ask for none. Refuses by UsageError
// what such a student cannot have. notes: where the recipe and the adapter's folder differ.
std::optional<adapters::AdapterConfig> adapt_student(const AdapterOptions& options, models::BuiltModel& student,
                                                     std::vector<std::string>& notes);

}  // namespace limbeck::build
