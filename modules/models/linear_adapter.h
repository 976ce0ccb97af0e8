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

// What it held before its adapter became part of it, in the same dtype.
struct UnmergedLinear {
  at::Tensor weight;
  std::optional<at::Tensor> bias;
  at::Tensor gain;  // of an error in the merged weight on the way back: one factor, a row or a column of them
};

class LinearAdapter : public precision::ContractModule {
 public:
  // Stored and computed as `host` is, unless a rule names this path.
  LinearAdapter(const precision::Scope& scope, const precision::Precision& host)
      : ContractModule(scope, precision::Role::kAdapter, &host) {}
  // In place of host.base_forward(x), from the same x to the same dtype.
  virtual at::Tensor forward(const at::Tensor& x, const Linear& host) const = 0;
  virtual MergedLinear merged(const Linear& host) const = 0;
  // The way back from a host whose weights are merged; only where unmerge_fault() is empty: else it says why they do
  // not tell what was there before.
  virtual UnmergedLinear unmerged(const Linear& host) const;
  virtual std::string unmerge_fault() const;
  // First values, with which it changes nothing; parameters on meta stay as they are.
  virtual void initialize(const Linear& host, uint64_t seed) = 0;

 protected:
  // A weight in the dtype of MergedLinear.
  at::Tensor widened(const at::Tensor& weight) const;
};

}  // namespace limbeck::models
