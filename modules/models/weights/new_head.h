// A classifier over an encoder that never had one: which modules are drawn afresh where a user asks for a new head. The
// last layer always is; what stands between it and the encoder (BERT's pooler, DistilBERT's pre_classifier) only where
// the folder lacks all of it. Nothing of the encoder ever is: what it lacks stays a refusal.
#pragma once
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "modules/models/weights/weights.h"

namespace limbeck::models {

// UsageError for a model without a classifier, naming its config.json and what would make it one.
void require_classifier(const ModelConfig& config, const std::string& root);

// Of the modules that own `bindings`; `stored`: whether the folder holds a tensor under one of a binding's names.
std::set<const precision::ContractModule*> modules_to_draw(const Transformer& model,
                                                           const std::vector<WeightBinding>& bindings,
                                                           const std::function<bool(const WeightBinding&)>& stored);

// What to type where just these are missing; "" where anything else is.
std::string advice_for_missing(const Transformer& model, const std::vector<const WeightBinding*>& missing);

}  // namespace limbeck::models
