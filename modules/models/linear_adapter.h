// What changes a linear module without changing its weight: a module of its own, in the dtypes of its host.
#pragma once
#include "modules/precision/contract_module.h"

namespace limbeck::models {

class Linear;

class LinearAdapter : public precision::ContractModule {
 public:
  // Stored and computed as `host` is, unless a rule names this path.
  LinearAdapter(const precision::Scope& scope, const precision::Precision& host)
      : ContractModule(scope, precision::Role::kAdapter, &host) {}
  // In place of host.base_forward(x), from the same x to the same dtype.
  virtual at::Tensor forward(const at::Tensor& x, const Linear& host) const = 0;
};

}  // namespace limbeck::models
