// A float model in training for the codes that it will be stored in: every linear module, embedding and stack of
// experts that the folder packs is seen through its format, and the folder holds exactly what was seen.
#pragma once
#include <filesystem>

#include "modules/models/weights/load_model.h"
#include "modules/models/weights/save_model.h"

namespace limbeck::adapters {

// What works on each of its modules, as adapters are called.
inline constexpr const char* kCodes = "codes";

// `folder`: what the run exports, by the packing and rules that say which module has which format. UsageError where it
// packs nothing, or what no folder holds. Gives how many modules are seen so.
int64_t see_through_formats(models::BuiltModel& floats, models::ModelRequest folder);
bool sees_through_formats(const models::BuiltModel& model);

// As save_model() with packed weights. `options.before` is asked for every weight that codes are made of.
void save_codes(const models::BuiltModel& model, const std::filesystem::path& folder, models::SaveOptions options);

}  // namespace limbeck::adapters
