// The names of an adapter's files and tensors; of those in adapter_model.safetensors kPrefix, the module's own name, a
// suffix.
#pragma once
#include <array>
#include <string_view>

namespace limbeck::adapters {

inline constexpr const char* kConfigFile = "adapter_config.json";  // what a folder has that is an adapter
inline constexpr const char* kTensorFile = "adapter_model.safetensors";
inline constexpr std::string_view kPrefix = "base_model.model.";
inline constexpr std::string_view kBase = "base_layer";  // the host's weight, which PEFT stores of embeddings and heads

struct AdapterPart {
  std::string_view suffix, parameter;
};

// Of each parameter the first is what is written; what ends in several of them is the last.
inline constexpr std::array<AdapterPart, 9> kParts = {{{".weight", kBase},
                                                       {".base_layer.weight", kBase},
                                                       {".lora_A.weight", "lora_A"},
                                                       {".lora_B.weight", "lora_B"},
                                                       {".lora_embedding_A", "lora_embedding_A"},
                                                       {".lora_embedding_B", "lora_embedding_B"},
                                                       {".lora_magnitude_vector", "lora_magnitude_vector"},
                                                       {".lora_magnitude_vector.weight", "lora_magnitude_vector"},
                                                       {".ia3_l", "ia3_l"}}};

}  // namespace limbeck::adapters
