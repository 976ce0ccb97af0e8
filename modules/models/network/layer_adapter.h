// What changes a whole layer without changing its weights: a module of its own, in the dtypes of its host.
#pragma once
#include "modules/precision/contract_module.h"

namespace limbeck::models {

class Layer;
struct LayerInput;

class LayerAdapter : public precision::ContractModule {
 public:
  // Stored and computed as `host` is, the part of the layer that it works on, unless a rule names this path.
  LayerAdapter(const precision::Scope& scope, const precision::Precision& host)
      : ContractModule(scope, precision::Role::kAdapter, &host) {}
  // Stored and computed as the model is: of a layer whose parts are not known.
  explicit LayerAdapter(const precision::Scope& scope) : ContractModule(scope, precision::Role::kAdapter) {}
  // In place of host.base_forward(h, input), from the host's parts: h to the same shape and dtype.
  virtual at::Tensor forward(const at::Tensor& h, const Layer& host, const LayerInput& input) const = 0;
  // First values; parameters on meta stay as they are.
  virtual void initialize(const Layer& host, uint64_t seed) = 0;
  virtual std::string kind_name() const = 0;  // as adapter.kind has it
};

}  // namespace limbeck::models
