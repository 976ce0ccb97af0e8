// The experts of one sparse layer: two stacked weights, with stacked biases where the family has some, each of which
// adapters can be on. The first is gate and up, or up alone where nothing is gated. Where the contract packs them, gate
// and up are stacks of their own, so that each matrix of a checkpoint is one of ours, to the bit.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "modules/models/family/architecture.h"
#include "modules/models/network/named_adapters.h"
#include "modules/models/network/weight_adapter.h"

namespace limbeck::models {

class ExpertWeights;

// [E, out, in]
struct StackSizes {
  int64_t experts, out, in;
};

// One of the stacked weights: a parameter of the ExpertWeights that owns this, or packed stacks of it, one after the
// other along out.
class ExpertStack : public torch::nn::Module, public NamedAdapters<ExpertAdapter> {
 public:
  ExpertStack(const ExpertWeights& owner, const std::string& parameter, const StackSizes& sizes);
  // rows [R, in] sorted by expert, ends int32 [E]: where those of each end -> [R, out], with the adapter that works.
  at::Tensor forward(const at::Tensor& rows, const at::Tensor& ends) const;
  at::Tensor product(const at::Tensor& rows, const at::Tensor& ends) const;  // and without it
  const at::Tensor& weight() const;                                          // throws where it is quantized
  bool is_quantized() const;
  std::optional<at::Tensor> bias() const;  // [E, out], which the owner adds
  // Of some experts, [count, out, in]; of quantized ones what their codes stand for, in float32.
  at::Tensor weight_rows(int64_t expert, int64_t count) const;
  const StackSizes& sizes() const { return sizes_; }
  // Of the owner's packed stacks: those that stand for the parameter of this name.
  static std::vector<std::string> packed_names(const std::string& parameter);
  std::vector<precision::PackedWeight> packed_parts() const;
  const std::string& path() const { return path_; }
  const std::string& parameter_name() const { return parameter_; }
  static std::string bias_name(const std::string& parameter) { return parameter + "_bias"; }
  // Of what happens inside the owner, whose doors are behind and before.
  precision::Precision precision() const;
  c10::Device placement() const;

 private:
  const ExpertWeights& owner_;
  std::string parameter_, path_;
  StackSizes sizes_;
};

// The router's probabilities are float32.
class ExpertWeights : public precision::ContractModule {
 public:
  ExpertWeights(const precision::Scope& scope, const Architecture& architecture);
  int64_t count() const { return count_; }
  std::vector<std::shared_ptr<ExpertStack>> stacks() const { return {first_, down_}; }
  // As checkpoints name the matrices of one expert, in the order of the stacks.
  static std::vector<std::string> matrix_names(const Architecture& architecture);
  // What the second stack gets, of what the first one gave.
  at::Tensor activated(const at::Tensor& first) const;
  // x_nd [N, D], experts_nk int64 [N, K], weights_nk float32 (float64 for a float64 model) -> [N, D]
  at::Tensor forward(const at::Tensor& x_nd, const at::Tensor& experts_nk, const at::Tensor& weights_nk) const;

 protected:
  Packed pack(kernels::QuantizedFormat format) const override;

 private:
  at::Tensor mixed(const at::Tensor& x_nd, const at::Tensor& experts_nk, const at::Tensor& weights_nk) const;
  at::Tensor products(const at::Tensor& rows, const at::Tensor& ends) const;  // as those of ExpertStack

  int64_t count_;
  Activation activation_;
  bool gated_;
  std::shared_ptr<ExpertStack> first_, down_;
};

}  // namespace limbeck::models
