#include "modules/adapters/merge.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <vector>

#include "modules/errors.h"
#include "modules/models/layers.h"
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

}  // namespace

MergeReport merge_adapter(models::BuiltModel& built) {
  const at::NoGradGuard no_gradient;
  std::vector<Linear*> adapted;
  for (const auto& layer : built.model->layers()) {
    if (layer->adapter() == nullptr) continue;
    throw UsageError(
        fmt::format("[{}] has an adapter that changes what the layer does and no weight (NPT), which cannot be merged: "
                    "use it beside the model (--adapter)",
                    layer->path()));
  }
  for (const auto& module : built.model->modules()) {
    auto* linear = dynamic_cast<Linear*>(module.get());
    if (linear == nullptr || linear->adapter() == nullptr) continue;
    if (linear->is_quantized()) {
      throw UsageError(
          fmt::format("[{}] stores its weight in {}, where the change of an adapter would drown in rounding: use the "
                      "adapter beside the model (--adapter), or merge without quantization",
                      linear->path(), precision::storage_name(linear->precision())));
    }
    if (linear->is_tied()) {
      throw UsageError(
          fmt::format("[{}] shares its weight with the embedding, which merging would change too: use the adapter "
                      "beside the model (--adapter), or set \"tie_word_embeddings\" to false and store both",
                      linear->path()));
    }
    adapted.push_back(linear);
  }
  MergeReport report;
  for (Linear* linear : adapted) {
    const models::MergedLinear merged = linear->adapter()->merged(*linear);
    const double error = put(linear->weight(), merged.weight);
    if (merged.bias) put(*linear->bias(), *merged.bias);
    if (error >= report.worst_error) report.worst_error = error, report.worst_module = linear->path();
    linear->use_adapter("");
    ++report.modules;
  }
  return report;
}

}  // namespace limbeck::adapters
