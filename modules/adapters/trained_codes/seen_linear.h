// A linear module whose float weight does what its codes stand for: forward, evaluation and export compute by them, and
// the gradient passes straight through to the floats (kernels/quantized/straight_through.h). It owns no parameter; its
// contract says the format.
#pragma once
#include "modules/models/network/parameter_modules.h"
#include "modules/models/network/weight_adapter.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::adapters {

class SeenLinear : public models::LinearAdapter {
 public:
  // `stored`: the same module as `folder` has it, which is the model that the run exports: packed.
  SeenLinear(const precision::Scope& scope, const models::Linear& host, const models::Linear& stored,
             std::shared_ptr<const models::ModelRequest> folder);
  at::Tensor forward(const at::Tensor& x, const models::Linear& host, const models::Draws& draws) const override;
  models::ProductOperands operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                   const models::Draws& draws) const override;
  models::MergedWeight merged(const models::Linear& host) const override;  // what the codes stand for
  models::UnmergedWeight unmerged(const models::Linear& host) const override;
  std::string unmerge_fault() const override;
  void initialize(const models::Linear& host, uint64_t seed) override;

  // Of the weight as it is now, as the folder stores them.
  precision::PackedWeight codes(const models::Linear& host) const;
  const models::ModelRequest& folder() const { return *folder_; }

 private:
  kernels::QuantizedFormat format() const { return *precision().quantized; }

  std::shared_ptr<const models::ModelRequest> folder_;
};

}  // namespace limbeck::adapters
