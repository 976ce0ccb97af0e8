// What adapters can be on, by the names that PEFT has for it: modules as in the Hugging Face folder, and the stacked
// weights of experts.
#pragma once
#include <map>
#include <set>
#include <string>
#include <variant>

#include "modules/models/network/parameter_modules.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::adapters {

using AnyHost = std::variant<models::Linear*, models::Embedding*, models::ExpertStack*>;

struct NamedHost {
  AnyHost host;
  bool transposed = false;  // its checkpoint stores [in, out], as GPT-2 does

  bool is_stack() const { return std::holds_alternative<models::ExpertStack*>(host); }
};

// One name each: "model.layers.0.self_attn.q_proj", "model.embed_tokens", "model.layers.0.mlp.experts.down_proj"; a
// head tied to the embedding is "lm_head".
std::map<std::string, NamedHost> adapter_hosts(const models::BuiltModel& built);
// Older spellings of the same modules as well.
std::map<std::string, NamedHost> adapter_hosts_by_any_name(const models::BuiltModel& built);

// PEFT wraps the module of the stacks once for each that is adapted, gate_up_proj first: how the module of this one is
// called in adapter_model.safetensors, "….mlp.experts" or "….mlp.experts.base_layer".
std::string stored_module(const std::string& stack, const std::set<std::string>& adapted_stacks);

}  // namespace limbeck::adapters
