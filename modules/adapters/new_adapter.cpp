#include "modules/adapters/new_adapter.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "modules/errors.h"
#include "modules/nearest_name.h"

namespace limbeck::adapters {
namespace {

using models::Linear;
using precision::Role;

std::vector<std::string> names_of(const std::map<std::string, AdapterHost>& hosts) {
  std::vector<std::string> names;
  for (const auto& [name, host] : hosts) names.push_back(name);
  return names;
}

// What scales an MLP's activations before its last product, in IA3.
bool leads_out_of_mlp(const Linear& linear) {
  return linear.role() == Role::kMlp && linear.path().ends_with(".down_proj");
}

bool is_default_target(const Linear& linear, PeftKind kind) {
  if (linear.role() != Role::kAttention && linear.role() != Role::kMlp) return false;
  if (kind == PeftKind::kLora) return true;
  const auto ends = [&](const char* name) { return linear.path().ends_with(name); };
  return ends(".k_proj") || ends(".v_proj") || ends(".qkv_proj") || leads_out_of_mlp(linear);
}

std::map<std::string, AdapterHost> targets_of(const models::BuiltModel& built, const NewAdapter& wanted,
                                              const std::map<std::string, AdapterHost>& every) {
  std::map<std::string, AdapterHost> found;
  for (const auto& [name, host] : every) {
    const bool named = std::any_of(wanted.targets.begin(), wanted.targets.end(),
                                   [&, &module = name](const auto& target) { return names_module(target, module); });
    if (wanted.targets.empty() ? is_default_target(*host.linear, wanted.config.kind) : named) found.emplace(name, host);
  }
  if (found.empty()) {
    throw UsageError(fmt::format("no linear module of this {} model is one that {} adapts by itself: name modules",
                                 built.config.architecture.family, wanted.config.kind_name()));
  }
  return found;
}

void require_named(const std::string& what, const std::string& pattern,
                   const std::map<std::string, AdapterHost>& among) {
  const auto names = names_of(among);
  if (std::any_of(names.begin(), names.end(), [&](const auto& name) { return names_module(pattern, name); })) return;
  throw UsageError(fmt::format("adapter.{} {} names no linear module{}: the nearest are {}", what, pattern,
                               what == "target" ? "" : " that is adapted",
                               fmt::join(nearest_names(pattern, names, 3), ", ")));
}

}  // namespace

precision::Scope adapter_scope(const models::BuiltModel& built, const Linear& host, const std::string& name,
                               bool trainable) {
  return {built.policy.get(), host.path() + "." + name, host.placement(), trainable};
}

std::shared_ptr<LowRank> make_low_rank(const PeftConfig& config, const precision::Scope& scope, const Linear& host,
                                       const std::string& module) {
  const LowRankShape shape{.in = host.in_features(),
                           .out = host.out_features(),
                           .rank = config.rank_of(module),
                           .scale = config.scale_of(module),
                           .dora = config.dora};
  return std::make_shared<LowRank>(scope, host.precision(), shape);
}

std::shared_ptr<LearnedScale> make_learned_scale(const precision::Scope& scope, const Linear& host, Scaled what) {
  return std::make_shared<LearnedScale>(scope, host.precision(), what,
                                        what == Scaled::kInput ? host.in_features() : host.out_features());
}

int64_t create_adapter(models::BuiltModel& built, const NewAdapter& wanted) {
  const auto every = adapter_hosts(built);
  for (const std::string& target : wanted.targets) require_named("target", target, every);
  const auto hosts = targets_of(built, wanted, every);
  for (const auto& [pattern, rank] : wanted.config.ranks) require_named("rank_pattern", pattern, hosts);
  for (const auto& [pattern, alpha] : wanted.config.alphas) require_named("alpha_pattern", pattern, hosts);
  for (const auto& [module, host] : hosts) {
    const precision::Scope scope = adapter_scope(built, *host.linear, wanted.name, /*trainable=*/true);
    std::shared_ptr<models::LinearAdapter> adapter;
    if (wanted.config.kind == PeftKind::kIa3) {
      const Scaled what = leads_out_of_mlp(*host.linear) ? Scaled::kInput : Scaled::kOutput;
      adapter = make_learned_scale(scope, *host.linear, what);
    } else {
      adapter = make_low_rank(wanted.config, scope, *host.linear, module);
    }
    adapter->initialize(*host.linear, wanted.seed);
    host.linear->add_adapter(wanted.name, adapter);
    host.linear->use_adapter(wanted.name);
  }
  return static_cast<int64_t>(hosts.size());
}

}  // namespace limbeck::adapters
