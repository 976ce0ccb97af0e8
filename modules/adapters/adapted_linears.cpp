#include "modules/adapters/adapted_linears.h"

#include <fmt/format.h>

#include "modules/errors.h"

namespace limbeck::adapters {

using models::Linear;

std::vector<Linear*> linears_of(const models::BuiltModel& built) {
  std::vector<Linear*> found;
  for (const auto& module : built.model->modules()) {
    if (auto* linear = dynamic_cast<Linear*>(module.get())) found.push_back(linear);
  }
  return found;
}

std::vector<Linear*> adapted_linears(const models::BuiltModel& built) {
  for (const auto& layer : built.model->layers()) {
    if (layer->adapter() == nullptr) continue;
    throw UsageError(
        fmt::format("[{}] has an adapter that changes what the layer does and no weight (NPT), which cannot be merged: "
                    "use it beside the model (--adapter)",
                    layer->path()));
  }
  std::vector<Linear*> adapted;
  for (Linear* linear : linears_of(built)) {
    if (linear->adapter() == nullptr) continue;
    if (linear->is_tied()) {
      throw UsageError(
          fmt::format("[{}] shares its weight with the embedding, which merging would change too: use the adapter "
                      "beside the model (--adapter), or set \"tie_word_embeddings\" to false and store both",
                      linear->path()));
    }
    adapted.push_back(linear);
  }
  return adapted;
}

std::string working_adapter(const Linear& linear) {
  if (linear.adapter() == nullptr) return "";
  for (const std::string& name : linear.adapter_names()) {
    if (linear.adapter(name) == linear.adapter()) return name;
  }
  return "";
}

}  // namespace limbeck::adapters
