// What changes a linear module without changing its weight: a module of its own, in the dtypes of its host.
#pragma once
#include <optional>

#include "modules/precision/contract_module.h"

namespace limbeck::models {

class Linear;

// What a linear module holds once its adapter is part of it: in float32, float64 for a float64 model.
struct MergedLinear {
  at::Tensor weight;
  std::optional<at::Tensor> bias;
};

// The operands of a linear module's product, x weight^T, for who makes it tile by tile (the losses at a head).
struct ProductOperands {
  at::Tensor x, weight;
};

class LinearAdapter : public precision::ContractModule {
 public:
  // Stored and computed as `host` is, unless a rule names this path.
  LinearAdapter(const precision::Scope& scope, const precision::Precision& host)
      : ContractModule(scope, precision::Role::kAdapter, &host) {}
  // In place of host.base_forward(x), from the same x to the same dtype.
  virtual at::Tensor forward(const at::Tensor& x, const Linear& host) const = 0;
  // Of the product that includes the adapter: differentiable in x and, if `learns`, in the adapter. The host has no
  // bias. Costs a tensor as large as the host's weight.
  virtual ProductOperands operands(const at::Tensor& x, const Linear& host, bool learns) const = 0;
  virtual MergedLinear merged(const Linear& host) const = 0;
  // First values, with which it changes nothing; parameters on meta stay as they are.
  virtual void initialize(const Linear& host, uint64_t seed) = 0;

 protected:
  // A weight in the dtype of MergedLinear.
  at::Tensor widened(const at::Tensor& weight) const;
};

}  // namespace limbeck::models
