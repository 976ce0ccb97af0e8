// The machine-readable result of a command: `--json FILE`, or `--json=-` for standard output.
#pragma once
#include <nlohmann/json.hpp>
#include <string>

#include "trainer/recipe/settings.h"

namespace limbeck::cli {

// Whether a file is what write_json_result() writes: the one file that a command may find where it shall write and
// replace without asking whose it is.
bool is_json_result(const std::string& path);
// IoError when FILE could not be written at the end; called before the work starts.
void check_json_target(const std::string& target);

// Written to a temporary beside the target, flushed to disk, then renamed: never half a result under the name.
void write_json_result(const std::string& target, const nlohmann::ordered_json& result);

// {"student.dtype": {"value": "bfloat16", "from": "recipes/my.ini:14"}, ...}; lists as arrays
nlohmann::ordered_json settings_as_json(const recipe::Settings& settings);

}  // namespace limbeck::cli
