// Adapters of an added kind on disk, in the form of PEFT's folders: adapter_config.json with "peft_type": NAME, the
// modules and the sizes; adapter_model.safetensors with tensors named as
// base_model.model.model.layers.0.self_attn.q_proj.NAME.PARAMETER.
#pragma once
#include <filesystem>
#include <string>

#include "modules/adapters/added/added_kind.h"
#include "modules/adapters/folder/peft_folder.h"

namespace limbeck::adapters {

// Adds the adapter to every module that the folder names, and uses it; on meta the files are checked and no value is
// read. WeightsError for missing, extra, misshapen and non-finite tensors, for modules that the model has not and for
// unknown keys, by name; the model is then as it was.
LoadedAdapter load_added(models::BuiltModel& built, const AddedKind& kind, const AdapterRequest& request);

// Writes what load_added() reads, bit for bit, into `folder`, which exists. before: see modules/io/safetensors.h.
void save_added(const models::BuiltModel& built, const AddedConfig& config, const std::string& name,
                const std::filesystem::path& folder, const io::BeforeTensor& before = {});

}  // namespace limbeck::adapters
