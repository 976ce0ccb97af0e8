#include "modules/models/weights/new_head.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"

namespace limbeck::models {

namespace {

bool is_last_layer(const precision::ContractModule& module, const Transformer& model) {
  return module.path() == model.path() + ".classifier";
}

bool leads_to_it(const precision::ContractModule& module, const Transformer& model) {
  return module.path() == model.path() + ".pooler" || module.path() == model.path() + ".pre_classifier";
}

}  // namespace

void require_classifier(const ModelConfig& config, const std::string& root) {
  if (is_classifier(config.architecture.head)) return;
  throw UsageError(fmt::format(
      "[{0}] {1} is of no classifier, wanted \"architectures\" that end in ForSequenceClassification for {0}.init = "
      "new_head: make such a folder of it with tools/as_classifier.py, or set {0}.init = weights",
      root, (config.folder / "config.json").string()));
}

std::set<const precision::ContractModule*> modules_to_draw(const Transformer& model,
                                                           const std::vector<WeightBinding>& bindings,
                                                           const std::function<bool(const WeightBinding&)>& stored) {
  std::set<const precision::ContractModule*> drawn;
  for (const WeightBinding& binding : bindings) {
    if (is_last_layer(*binding.owner, model) || leads_to_it(*binding.owner, model)) drawn.insert(binding.owner);
  }
  for (const WeightBinding& binding : bindings) {
    if (drawn.contains(binding.owner) && leads_to_it(*binding.owner, model) && stored(binding)) {
      drawn.erase(binding.owner);
    }
  }
  return drawn;
}

std::string advice_for_missing(const Transformer& model, const std::vector<const WeightBinding*>& missing) {
  if (!is_classifier(model.architecture().head) || missing.empty()) return "";
  const bool head_alone = std::all_of(missing.begin(), missing.end(), [&](const WeightBinding* binding) {
    return is_last_layer(*binding->owner, model) || leads_to_it(*binding->owner, model);
  });
  return head_alone ? fmt::format(": {}.init = new_head draws a new head over the encoder, to be trained", model.path())
                    : "";
}

}  // namespace limbeck::models
