// An adapter that did not exist before: on which modules, with which first values.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "modules/adapters/hosts/adapter_hosts.h"
#include "modules/adapters/low_rank/learned_scale.h"
#include "modules/adapters/peft/peft_config.h"

namespace limbeck::adapters {

struct NewAdapter {
  PeftConfig config;
  // Modules as PEFT names them ("q_proj", "layers.0.self_attn.v_proj", "embed_tokens", "experts.down_proj"). None:
  // every linear module of the layers but routers, and for IA3 keys, values and what leads out of the MLP.
  std::vector<ModulePattern> targets;
  std::string name = "default";
  uint64_t seed = 0;
};

// On meta as well. Gives the number of modules. UsageError for a target or pattern that names none.
int64_t create_adapter(models::BuiltModel& built, const NewAdapter& wanted);

// Why an adapter of this kind cannot be on this host: "stacks the weights of experts, …"; "" where it can.
std::string misfit(const PeftConfig& config, const AnyHost& host);

// One module's adapter, by what it is on; its parameters are yet to be filled.
struct AdapterParts {
  const PeftConfig& config;
  precision::Scope scope;
  std::string module;               // the host by PEFT's name, for patterns
  Scaled scaled = Scaled::kOutput;  // of IA3
};
std::shared_ptr<models::LinearAdapter> make_adapter(const AdapterParts& parts, const models::Linear& host);
std::shared_ptr<models::EmbeddingAdapter> make_adapter(const AdapterParts& parts, const models::Embedding& host);
std::shared_ptr<models::ExpertAdapter> make_adapter(const AdapterParts& parts, const models::ExpertStack& host);

// Where the adapter `name` of this host is being built.
template <class Host>
precision::Scope adapter_scope(const models::BuiltModel& built, const Host& host, const std::string& name,
                               bool trainable) {
  return {built.policy.get(), host.path() + "." + name, host.placement(), trainable};
}

}  // namespace limbeck::adapters
