// What changes what a weight does without changing the weight: a module of its own, in the dtypes of its host.
#pragma once
#include <optional>
#include <string>

#include "kernels/operator/wide_type.h"
#include "modules/models/network/draws.h"
#include "modules/precision/casts.h"
#include "modules/precision/contract_module.h"

namespace limbeck::models {

class Linear;
class Embedding;
class ExpertStack;

// What a host holds once its adapter is part of it: in float32, float64 for a float64 model.
struct MergedWeight {
  at::Tensor weight;
  std::optional<at::Tensor> bias;
};

// The operands of a linear module's product, x weight^T, for who makes it tile by tile (the losses at a head).
struct ProductOperands {
  at::Tensor x, weight;
};

// What it held before, in the same dtype.
struct UnmergedWeight {
  at::Tensor weight;
  std::optional<at::Tensor> bias;
  at::Tensor gain;  // of an error in the merged weight on the way back: one factor, a row or a column of them
};

template <class Host>
class WeightAdapter : public precision::ContractModule {
 public:
  // Stored and computed as `host` is, unless a rule names this path.
  WeightAdapter(const precision::Scope& scope, const precision::Precision& host)
      : ContractModule(scope, precision::Role::kAdapter, &host) {}
  virtual MergedWeight merged(const Host& host) const = 0;  // where merge_fault() is empty
  // Why no weight does what it does: "bends its output, which no weight does".
  virtual std::string merge_fault() const { return ""; }
  // The way back from a host whose weight is merged, where unmerge_fault() is empty: else it says why the weight does
  // not tell what was there before.
  virtual UnmergedWeight unmerged(const Host& host) const = 0;
  virtual std::string unmerge_fault() const { return ""; }
  // First values, with which it changes nothing; parameters on meta stay as they are.
  virtual void initialize(const Host& host, uint64_t seed) = 0;

 protected:
  // A weight in the dtype of MergedWeight.
  at::Tensor widened(const at::Tensor& weight) const {
    const at::ScalarType from = weight.scalar_type(), to = kernels::wide_type(from);
    return precision::cast(weight.detach(), from, to, path() + " (widened)");
  }
};

class LinearAdapter : public WeightAdapter<Linear> {
 public:
  using WeightAdapter::WeightAdapter;
  // In place of host.base_forward(x), from the same x to the same dtype. draws: for what drops a part of x in training.
  virtual at::Tensor forward(const at::Tensor& x, const Linear& host, const Draws& draws) const = 0;
  // Of the product that includes the adapter: differentiable in x and, if `learns`, in the adapter. The host has no
  // bias. Costs a tensor as large as the host's weight.
  virtual ProductOperands operands(const at::Tensor& x, const Linear& host, bool learns, const Draws& draws) const = 0;
};

class EmbeddingAdapter : public WeightAdapter<Embedding> {
 public:
  using WeightAdapter::WeightAdapter;
  // In place of host.base_forward(ids).
  virtual at::Tensor forward(const at::Tensor& ids, const Embedding& host) const = 0;
};

class ExpertAdapter : public WeightAdapter<ExpertStack> {
 public:
  using WeightAdapter::WeightAdapter;
  // In place of host.product(rows, ends). rows [R, in], those of one expert together, ends int32 [E] on their device:
  // where they end (kernels::grouped_linear) -> [R, out]
  virtual at::Tensor forward(const at::Tensor& rows, const at::Tensor& ends, const ExpertStack& host) const = 0;
};

}  // namespace limbeck::models
