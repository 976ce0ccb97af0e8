// Adapters as PEFT keeps them: a folder with adapter_config.json and adapter_model.safetensors.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "modules/adapters/adapter_config.h"
#include "modules/io/safetensors.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::adapters {

struct AdapterWeight {
  std::string name;  // in the file: "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
  at::Tensor parameter;
};

struct LoadedAdapter {
  AdapterConfig config;
  std::vector<AdapterWeight> weights;
  double stored_dropout = 0;              // what the folder says, whatever the request
  int64_t modules = 0, cast_tensors = 0;  // stored in another dtype than the host's, converted at loading
};

struct AdapterRequest {
  std::filesystem::path folder = {};
  std::string name = "default";
  bool trainable = false;
  std::optional<double> dropout = std::nullopt;  // in place of the folder's, where that is of a kind that has one
  bool merged = false;  // the model has it in its weights already, which are then not those that it was learnt beside
};

// Adds the adapter to every module that the file has tensors for, and uses it. What PEFT can do and this cannot is
// refused by the name of the option; tensors without a place, and halves of a pair, by theirs.
LoadedAdapter load_adapter(models::BuiltModel& built, const AdapterRequest& request);

// Writes the adapter of this name into `folder`, which exists: what load_adapter() reads, and PEFT if it knows the
// kind. before: see modules/io/safetensors.h.
void save_adapter(const models::BuiltModel& built, const AdapterConfig& config, const std::string& name,
                  const std::filesystem::path& folder, const io::BeforeTensor& before = {});

}  // namespace limbeck::adapters
