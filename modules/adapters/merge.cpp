#include "modules/adapters/merge.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <type_traits>
#include <vector>

#include "modules/adapters/adapter_hosts.h"
#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

using models::Linear;

double put(const at::Tensor& parameter, const at::Tensor& exact) {
  at::Tensor stored = parameter.detach();
  precision::cast_into(stored, exact);
  const at::Tensor back = precision::cast(stored, stored.scalar_type(), exact.scalar_type(), "merge (rounding)");
  const double size = exact.norm().item<double>();
  return size > 0 ? (back - exact).norm().item<double>() / size : 0;
}

void require_mergeable(const Linear& linear, const models::BuiltModel&) {
  if (linear.is_quantized()) {
    throw UsageError(
        fmt::format("[{}] stores its weight in {}, where the change of an adapter would drown in rounding: use the "
                    "adapter beside the model (--adapter), or merge without quantization",
                    linear.path(), precision::storage_name(linear.precision())));
  }
  if (linear.is_tied()) {
    throw UsageError(
        fmt::format("[{}] shares its weight with the embedding, which merging would change too: use the adapter "
                    "beside the model (--adapter), or set \"tie_word_embeddings\" to false and store both",
                    linear.path()));
  }
}

void require_mergeable(const models::Embedding& embedding, const models::BuiltModel& built) {
  const models::Architecture& a = built.model->architecture();
  const bool tied = a.tied && a.head == models::HeadKind::kLanguageModel;
  if (!tied || embedding.path() != built.model->path() + ".embed_tokens") return;
  throw UsageError(
      fmt::format("[{}] shares its weight with the head, which merging would change too: use the adapter beside the "
                  "model (--adapter), or set \"tie_word_embeddings\" to false and store both",
                  embedding.path()));
}

void require_mergeable(const models::ExpertStack&, const models::BuiltModel&) {}

// Of the adapter that works on it.
template <class Host>
void merge_into(Host& host, MergeReport& report) {
  const models::MergedWeight merged = host.adapter()->merged(host);
  const double error = put(host.weight(), merged.weight);
  if constexpr (std::is_same_v<Host, Linear>) {
    if (merged.bias) put(*host.bias(), *merged.bias);
  }
  if (error >= report.worst_error) report.worst_error = error, report.worst_module = host.path();
  host.use_adapter("");
  ++report.modules;
}

}  // namespace

MergeReport merge_adapter(models::BuiltModel& built) {
  const at::NoGradGuard no_gradient;
  for (const auto& layer : built.model->layers()) {
    if (layer->adapter() == nullptr) continue;
    throw UsageError(
        fmt::format("[{}] has an adapter that changes what the layer does and no weight (NPT), which cannot be merged: "
                    "use it beside the model (--adapter)",
                    layer->path()));
  }
  std::vector<AnyHost> adapted;
  for (const auto& [name, named] : adapter_hosts(built)) {
    std::visit(
        [&](auto* host) {
          if (host->adapter() == nullptr) return;
          require_mergeable(*host, built);
          adapted.emplace_back(host);
        },
        named.host);
  }
  MergeReport report;
  for (const AnyHost& any : adapted) std::visit([&](auto* host) { merge_into(*host, report); }, any);
  return report;
}

}  // namespace limbeck::adapters
