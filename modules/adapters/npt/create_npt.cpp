#include "modules/adapters/npt/create_npt.h"

#include <fmt/format.h>

#include "modules/adapters/hosts/use_adapter.h"
#include "modules/errors.h"

namespace limbeck::adapters {
namespace {

void require_layers_of_its_kind(const models::BuiltModel& built) {
  for (const auto& layer : built.model->layers()) {
    const std::string kind = layer->other_kind();
    if (kind.empty()) continue;
    throw UsageError(
        fmt::format("[{}] {}: NPT wants pre-norm layers with a gated MLP, as Llama, Mistral, Qwen and Phi-3 have; this "
                    "is a {} model",
                    layer->path(), kind, built.config.architecture.family));
  }
}

}  // namespace

NptShape shape_for(const models::BuiltModel& built, const NptOptions& options) {
  if (options.rank < 1 || options.rank > kMostNptRank) {
    throw UsageError(fmt::format("NPT of rank {}: wanted 1 to {}", options.rank, kMostNptRank));
  }
  require_layers_of_its_kind(built);
  const models::Architecture& a = built.config.architecture;
  return {options.kind, options.modulation, options.curve, options.rank, options.scale, a.hidden, a.intermediate};
}

std::vector<std::shared_ptr<Npt>> make_npt(const models::BuiltModel& built, const NptOptions& options,
                                           const std::string& name) {
  const NptShape shape = shape_for(built, options);
  std::vector<std::shared_ptr<Npt>> made;
  for (const auto& layer : built.model->layers()) {
    if (layer->adapter(name) != nullptr) {
      throw UsageError(fmt::format("[{}] has an adapter {} already: give this one another name", layer->path(), name));
    }
    const models::Linear& host = *layer->gated_mlp().gate_module();
    const precision::Scope scope{built.policy.get(), layer->path() + "." + name, host.placement(), options.trainable};
    made.push_back(std::make_shared<Npt>(scope, host.precision(), shape));
  }
  return made;
}

void put_on(const models::BuiltModel& built, const std::vector<std::shared_ptr<Npt>>& adapters,
            const std::string& name) {
  const auto& layers = built.model->layers();
  for (size_t i = 0; i < layers.size(); ++i) layers[i]->add_adapter(name, adapters[i]);
  use_adapter(built, name);
}

void create_npt(models::BuiltModel& built, const NptOptions& options, const std::string& name) {
  const auto made = make_npt(built, options, name);
  for (size_t i = 0; i < made.size(); ++i) made[i]->initialize(*built.model->layers()[i], options.seed);
  put_on(built, made, name);
}

std::vector<const Npt*> npt_of(const models::BuiltModel& built, const std::string& name) {
  std::vector<const Npt*> found;
  for (const auto& layer : built.model->layers()) {
    const auto* adapter = dynamic_cast<const Npt*>(layer->adapter(name));
    if (adapter == nullptr) throw UsageError(fmt::format("[{}] has no NPT adapter {}", layer->path(), name));
    found.push_back(adapter);
  }
  return found;
}

}  // namespace limbeck::adapters
