// NPT adapters on disk, in the form of PEFT's folders: adapter_config.json with "peft_type": "NPT" and keys of our own
// (r, kind, modulation, modulation_curve, scale), adapter_model.safetensors with tensors named as
// base_model.model.model.layers.0.npt.A_proj.weight.
#pragma once
#include <filesystem>
#include <string>

#include "modules/adapters/folder/peft_folder.h"
#include "modules/adapters/npt/create_npt.h"

namespace limbeck::adapters {

bool is_npt_folder(const std::filesystem::path& folder);

// Adds the adapter to every layer and uses it; on meta the files are checked and no value is read. WeightsError for
// missing, extra, misshapen and non-finite tensors and for unknown keys, by name; the model is then as it was.
LoadedAdapter load_npt(models::BuiltModel& built, const AdapterRequest& request);

// Writes what load_npt() reads, bit for bit; the folder is made where there is none. UsageError where it holds an
// adapter already, IoError.
// before: see modules/io/safetensors.h.
void save_npt(const models::BuiltModel& built, const std::string& name, const std::filesystem::path& folder,
              const io::BeforeTensor& before = {});

// An adapter's parameters under the names that the file has for them.
std::vector<AdapterWeight> npt_weights(const models::BuiltModel& built, const std::string& name);

}  // namespace limbeck::adapters
