// Reads the parts of config.json that many families share: sizes, rotary positions, windows, end-of-sequence ids.
// Old and new spellings are both understood; what Limbeck does not compute is refused here, not ignored.
#pragma once
#include "modules/io/json_file.h"
#include "modules/models/family/architecture.h"

namespace limbeck::models {

// No width, vocabulary or context of a sane config is larger.
inline constexpr int64_t kMaxSize = int64_t{1} << 24;

// Sizes and options of the Llama line (Llama, Mistral, Qwen, Gemma, Phi, Mixtral).
Architecture read_llama_line(const io::JsonFile& config, double default_epsilon);

// rope_parameters (new), or rope_theta and rope_scaling (old), at `config` itself.
Rope read_rope(const io::JsonFile& config, int64_t head_dim, int64_t max_positions, double default_theta,
               bool partial_allowed);
// One rope object such as {"rope_type": "linear", "factor": 8, "rope_theta": 1e6}.
Rope read_rope_object(const io::JsonFile& rope, const io::JsonFile& config, int64_t head_dim, int64_t max_positions,
                      double default_theta, bool partial_allowed);

Activation read_activation(const io::JsonFile& config, const std::string& key, const std::string& fallback);
int64_t read_labels(const io::JsonFile& config);
// layer_types: "sliding_attention" or "full_attention" a layer; empty when the key is absent.
std::vector<bool> read_local_layers(const io::JsonFile& config, int64_t layers);
void read_end_of_sequence(const io::JsonFile& config, Architecture& architecture);
// Throws unless the key is absent, null, or holds the given value.
void require_value(const io::JsonFile& config, const std::string& key, const nlohmann::json& wanted);

}  // namespace limbeck::models
