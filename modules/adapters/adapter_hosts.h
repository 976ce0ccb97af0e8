// The linear modules of a model by the names that they have in its Hugging Face folder.
#pragma once
#include <map>
#include <string>

#include "modules/models/layers.h"
#include "modules/models/load_model.h"

namespace limbeck::adapters {

struct AdapterHost {
  models::Linear* linear = nullptr;
  bool transposed = false;  // its checkpoint stores [in, out], as GPT-2 does
};

// One name each: "model.layers.0.self_attn.q_proj"; a head tied to the embedding is "lm_head".
std::map<std::string, AdapterHost> adapter_hosts(const models::BuiltModel& built);
// Older spellings of the same modules as well.
std::map<std::string, AdapterHost> adapter_hosts_by_any_name(const models::BuiltModel& built);

}  // namespace limbeck::adapters
