// An adapter that did not exist before: on which modules, with which first values.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "modules/adapters/adapter_hosts.h"
#include "modules/adapters/learned_scale.h"
#include "modules/adapters/low_rank.h"
#include "modules/adapters/peft_config.h"

namespace limbeck::adapters {

struct NewAdapter {
  PeftConfig config;
  // Modules as PEFT names them ("q_proj", "layers.0.self_attn.v_proj"). None: every linear module of the layers but
  // routers, and for IA3 keys, values and what leads out of the MLP.
  std::vector<std::string> targets;
  std::string name = "default";
  uint64_t seed = 0;
};

// On meta as well. Gives the number of modules. UsageError for a target or pattern that names none.
int64_t create_adapter(models::BuiltModel& built, const NewAdapter& wanted);

// Parameters that are yet to be filled.
std::shared_ptr<LowRank> make_low_rank(const PeftConfig& config, const precision::Scope& scope,
                                       const models::Linear& host, const std::string& module);
std::shared_ptr<LearnedScale> make_learned_scale(const precision::Scope& scope, const models::Linear& host,
                                                 Scaled what);
// Where the adapter `name` of this module is being built.
precision::Scope adapter_scope(const models::BuiltModel& built, const models::Linear& host, const std::string& name,
                               bool trainable);

}  // namespace limbeck::adapters
