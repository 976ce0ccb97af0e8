#include "trainer/profile/module_replay.h"

#include "modules/models/network/experts.h"
#include "modules/precision/contract_modules.h"

namespace limbeck::profile {

CapturedInputs::CapturedInputs(const models::Transformer& model) {
  for (const auto& module : precision::contract_modules(model)) modules_[module->path()] = module.get();
}

void CapturedInputs::input(const precision::ContractModule& module, const at::Tensor& x) {
  inputs_.try_emplace(module.path(), Inputs{x, {}, {}});
}

void CapturedInputs::routing(const precision::ContractModule& module, const at::Tensor& experts_nk,
                             const at::Tensor& weights_nk) {
  Inputs& inputs = inputs_[module.path()];
  inputs.experts = experts_nk, inputs.weights = weights_nk;
}

std::vector<std::pair<std::string, std::function<void()>>> CapturedInputs::replays() const {
  std::vector<std::pair<std::string, std::function<void()>>> found;
  for (const auto& [path, inputs] : inputs_) {
    const auto module = modules_.find(path);
    if (module == modules_.end()) continue;  // an adapter's own, which its host runs
    const at::Tensor x = inputs.x;
    if (const auto* linear = dynamic_cast<const models::Linear*>(module->second)) {
      found.emplace_back(path, [linear, x] { linear->forward(x); });
    } else if (const auto* norm = dynamic_cast<const models::Norm*>(module->second)) {
      found.emplace_back(path, [norm, x] { norm->forward(x); });
    } else if (const auto* table = dynamic_cast<const models::Embedding*>(module->second)) {
      found.emplace_back(path, [table, x] { table->forward(x); });
    } else if (const auto* experts = dynamic_cast<const models::ExpertWeights*>(module->second)) {
      if (!inputs.experts.defined()) continue;
      found.emplace_back(path, [experts, inputs] { experts->forward(inputs.x, inputs.experts, inputs.weights); });
    }
  }
  return found;
}

}  // namespace limbeck::profile
