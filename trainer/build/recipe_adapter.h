// The adapter that a recipe trains on its student.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/adapter_config.h"
#include "modules/models/weights/load_model.h"
#include "trainer/recipe/settings.h"

namespace limbeck::build {

inline constexpr const char* kAdapterName = "default";

// Whether the student's own weights stay as they are.
bool trains_adapter(const recipe::Settings& settings);
// Puts it on the student, whose weights do not train; none where the recipe asks for none. Refuses by UsageError what
// cannot be trained so. notes: where the recipe and the adapter's folder differ.
std::optional<adapters::AdapterConfig> adapt_student(const recipe::Settings& settings, models::BuiltModel& student,
                                                     std::vector<std::string>& notes);

}  // namespace limbeck::build
