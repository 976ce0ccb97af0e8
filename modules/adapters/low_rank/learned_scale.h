// IA3: one learned factor for each output of a linear module, or for each input.
#pragma once
#include "modules/models/network/weight_adapter.h"

namespace limbeck::adapters {

enum class Scaled { kInput, kOutput };

// Parameter: ia3_l, [1, in] or [out, 1] as PEFT has it.
class LearnedScale : public models::LinearAdapter {
 public:
  LearnedScale(const precision::Scope& scope, const precision::Precision& host, Scaled what, int64_t width);
  at::Tensor forward(const at::Tensor& x, const models::Linear& host, const models::Draws& draws) const override;
  models::ProductOperands operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                   const models::Draws& draws) const override;
  models::MergedWeight merged(const models::Linear& host) const override;
  models::UnmergedWeight unmerged(const models::Linear& host) const override;
  std::string unmerge_fault() const override;                           // a factor of zero
  void initialize(const models::Linear& host, uint64_t seed) override;  // ones

 private:
  Scaled what_;
};

}  // namespace limbeck::adapters
