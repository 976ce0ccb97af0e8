#include "modules/adapters/merge/adapted_hosts.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::adapters {
namespace {

void require_own_weight(const models::Linear& linear, const models::BuiltModel&) {
  if (!linear.is_tied()) return;
  throw UsageError(
      fmt::format("[{}] shares its weight with the embedding, which merging would change too: use the adapter "
                  "beside the model (--adapter), or set \"tie_word_embeddings\" to false and store both",
                  linear.path()));
}

void require_own_weight(const models::Embedding& embedding, const models::BuiltModel& built) {
  const models::Architecture& a = built.model->architecture();
  const bool tied = a.tied && a.head == models::HeadKind::kLanguageModel;
  if (!tied || embedding.path() != built.model->path() + ".embed_tokens") return;
  throw UsageError(
      fmt::format("[{}] shares its weight with the head, which merging would change too: use the adapter beside the "
                  "model (--adapter), or set \"tie_word_embeddings\" to false and store both",
                  embedding.path()));
}

void require_own_weight(const models::ExpertStack&, const models::BuiltModel&) {}

}  // namespace

std::vector<AnyHost> adapted_hosts(const models::BuiltModel& built) {
  for (const auto& layer : built.model->layers()) {
    if (layer->adapter() == nullptr) continue;
    throw UsageError(
        fmt::format("[{}] has an adapter that changes what the layer does and no weight ({}), which cannot be merged: "
                    "use it beside the model (--adapter)",
                    layer->path(), layer->adapter()->kind_name()));
  }
  std::vector<AnyHost> adapted;
  for (const auto& [name, named] : adapter_hosts(built)) {
    std::visit(
        [&](auto* host) {
          if (host->adapter() == nullptr) return;
          const std::string fault = host->adapter()->merge_fault();
          if (!fault.empty()) {
            throw UsageError(fmt::format(
                "[{}] its adapter {}, and cannot be merged: use it beside the model (--adapter)", host->path(), fault));
          }
          require_own_weight(*host, built);
          adapted.emplace_back(host);
        },
        named.host);
  }
  return adapted;
}

std::string packed_in(const AnyHost& host) {
  return std::visit([](const auto* one) { return one->precision().quantized ? storage_name(one->precision()) : ""; },
                    host);
}

std::string path_of(const AnyHost& host) {
  return std::visit([](const auto* one) { return one->path(); }, host);
}

}  // namespace limbeck::adapters
