// adapter_config.json of an NPT adapter, to and from its options.
#pragma once
#include <filesystem>
#include <string>

#include "modules/adapters/npt/create_npt.h"
#include "modules/io/json_file.h"

namespace limbeck::adapters {

inline constexpr const char* kNptType = "NPT";  // its "peft_type"

// WeightsError for what is missing, out of range, unknown or contradicts itself, naming file and key.
NptOptions read_npt_config(const io::JsonFile& file);
std::string npt_config_text(const NptShape& shape, const std::string& base_model);

}  // namespace limbeck::adapters
