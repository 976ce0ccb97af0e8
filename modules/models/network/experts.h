// The experts of one sparse layer: two stacked weights, each of which adapters can be on.
#pragma once
#include <memory>
#include <string>

#include "modules/models/family/architecture.h"
#include "modules/models/network/named_adapters.h"
#include "modules/models/network/weight_adapter.h"

namespace limbeck::models {

class ExpertWeights;

// One of the stacked weights, [E, out, in], a parameter of the ExpertWeights that owns this.
class ExpertStack : public torch::nn::Module, public NamedAdapters<ExpertAdapter> {
 public:
  ExpertStack(const ExpertWeights& owner, const std::string& parameter);
  // rows [R, in] sorted by expert, ends int32 [E]: where those of each end -> [R, out], with the adapter that works.
  at::Tensor forward(const at::Tensor& rows, const at::Tensor& ends) const;
  const at::Tensor& weight() const;
  const std::string& path() const { return path_; }
  // Of what happens inside the owner, whose doors are behind and before.
  precision::Precision precision() const;
  c10::Device placement() const;

 private:
  const ExpertWeights& owner_;
  std::string parameter_, path_;
};

// The router's probabilities are float32.
class ExpertWeights : public precision::ContractModule {
 public:
  ExpertWeights(const precision::Scope& scope, const Architecture& architecture);
  // x_nd [N, D], experts_nk int64 [N, K], weights_nk float32 (float64 for a float64 model) -> [N, D]
  at::Tensor forward(const at::Tensor& x_nd, const at::Tensor& experts_nk, const at::Tensor& weights_nk) const;

 private:
  at::Tensor products(const at::Tensor& rows, const at::Tensor& ends) const;  // as those of ExpertStack

  int64_t count_;
  Activation activation_;
  std::shared_ptr<ExpertStack> gate_up_, down_;
};

}  // namespace limbeck::models
