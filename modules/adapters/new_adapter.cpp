#include "modules/adapters/new_adapter.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/adapters/low_rank/low_rank.h"
#include "modules/adapters/low_rank/low_rank_embedding.h"
#include "modules/adapters/low_rank/low_rank_experts.h"
#include "modules/errors.h"
#include "modules/nearest_name.h"

namespace limbeck::adapters {
namespace {

using models::Linear;
using precision::Role;

// What scales an MLP's activations before its last product, in IA3.
bool leads_out_of_mlp(const Linear& linear) {
  return linear.role() == Role::kMlp && linear.path().ends_with(".down_proj");
}

bool is_default_target(const AnyHost& host, PeftKind kind) {
  if (!std::holds_alternative<Linear*>(host)) return false;
  const Linear& linear = *std::get<Linear*>(host);
  if (kind == PeftKind::kLora && linear.role() == Role::kBkCore) return true;
  if (linear.role() != Role::kAttention && linear.role() != Role::kMlp) return false;
  if (kind == PeftKind::kLora) return true;
  const auto ends = [&](const char* name) { return linear.path().ends_with(name); };
  return ends(".k_proj") || ends(".v_proj") || ends(".qkv_proj") || leads_out_of_mlp(linear);
}

std::map<std::string, NamedHost> targets_of(const models::BuiltModel& built, const NewAdapter& wanted,
                                            const std::map<std::string, NamedHost>& every) {
  std::map<std::string, NamedHost> found;
  for (const auto& [name, host] : every) {
    const bool named = std::any_of(wanted.targets.begin(), wanted.targets.end(),
                                   [&, &module = name](const ModulePattern& target) { return target.names(module); });
    if (wanted.targets.empty() ? is_default_target(host.host, wanted.config.kind) : named) found.emplace(name, host);
  }
  if (found.empty()) {
    throw UsageError(fmt::format("no linear module of this {} model is one that {} adapts by itself: name modules",
                                 built.config.architecture.family, wanted.config.kind_name()));
  }
  return found;
}

void require_named(const std::string& what, const ModulePattern& pattern,
                   const std::map<std::string, NamedHost>& among) {
  const auto names = names_of(among);
  if (std::any_of(names.begin(), names.end(), [&](const auto& name) { return pattern.names(name); })) return;
  throw UsageError(fmt::format(
      "adapter.{} {} names no linear module, embedding or expert stack{}: {}", what, pattern.text(),
      what == "target" ? "" : " that is adapted",
      offer_nearest(pattern.text(), names, 3,
                    {.before = "the nearest are ", .otherwise = "'limbeck check RECIPE' lists its modules"})));
}

void require_fits(const PeftConfig& config, const AnyHost& host) {
  const std::string reason = misfit(config, host);
  if (reason.empty()) return;
  throw UsageError(std::visit(
      [&](const auto* module) {
        return fmt::format("[{}] {}: leave it out of adapter.target", module->path(), reason);
      },
      host));
}

LowRankShape low_rank_shape(const AdapterParts& parts, int64_t in, int64_t out) {
  return {.in = in,
          .out = out,
          .rank = parts.config.rank_of(parts.module),
          .scale = parts.config.scale_of(parts.module),
          .dora = parts.config.dora,
          .dropout = parts.config.dropout};
}

Scaled scaled_by_default(const AnyHost& host) {
  const auto* linear = std::get_if<Linear*>(&host);
  return linear != nullptr && leads_out_of_mlp(**linear) ? Scaled::kInput : Scaled::kOutput;
}

}  // namespace

std::string misfit(const PeftConfig& config, const AnyHost& host) {
  if (std::holds_alternative<Linear*>(host)) return "";
  const bool stack = std::holds_alternative<models::ExpertStack*>(host);
  if (stack && config.dropout > 0)
    return "stacks the weights of experts, on which there is no dropout, here and in PEFT";
  if (config.kind_name() == "lora" || (config.dora && !stack)) return "";
  return fmt::format("{}, on which there is no {}, here and in PEFT",
                     stack ? "stacks the weights of experts" : "is an embedding", config.kind_name());
}

std::shared_ptr<models::LinearAdapter> make_adapter(const AdapterParts& parts, const Linear& host) {
  const int64_t in = host.in_features(), out = host.out_features();
  if (parts.config.kind == PeftKind::kIa3) {
    return std::make_shared<LearnedScale>(parts.scope, host.precision(), parts.scaled,
                                          parts.scaled == Scaled::kInput ? in : out);
  }
  return std::make_shared<LowRank>(parts.scope, host.precision(), low_rank_shape(parts, in, out));
}

std::shared_ptr<models::EmbeddingAdapter> make_adapter(const AdapterParts& parts, const models::Embedding& host) {
  return std::make_shared<LowRankEmbedding>(parts.scope, host.precision(),
                                            low_rank_shape(parts, host.rows(), host.width()));
}

std::shared_ptr<models::ExpertAdapter> make_adapter(const AdapterParts& parts, const models::ExpertStack& host) {
  const models::StackSizes& sizes = host.sizes();
  return std::make_shared<LowRankExperts>(parts.scope, host.precision(), low_rank_shape(parts, sizes.in, sizes.out),
                                          sizes.experts);
}

int64_t create_adapter(models::BuiltModel& built, const NewAdapter& wanted) {
  const auto every = adapter_hosts(built);
  for (const ModulePattern& target : wanted.targets) require_named("target", target, every);
  const auto hosts = targets_of(built, wanted, every);
  for (const auto& [pattern, rank] : wanted.config.ranks) require_named("rank_pattern", pattern, hosts);
  for (const auto& [pattern, alpha] : wanted.config.alphas) require_named("alpha_pattern", pattern, hosts);
  for (const auto& [module, host] : hosts) require_fits(wanted.config, host.host);
  for (const auto& [name, named] : hosts) {
    const Scaled scaled = scaled_by_default(named.host);
    std::visit(
        [&, &module = name](auto* host) {
          const precision::Scope scope = adapter_scope(built, *host, wanted.name, /*trainable=*/true);
          const auto adapter = make_adapter({wanted.config, scope, module, scaled}, *host);
          adapter->initialize(*host, wanted.seed);
          host->add_adapter(wanted.name, adapter);
          host->use_adapter(wanted.name);
        },
        named.host);
  }
  return static_cast<int64_t>(hosts.size());
}

}  // namespace limbeck::adapters
