// LoRA on the stacked weights of experts: for each its own s B_e A_e, applied to its own rows.
#pragma once
#include "modules/adapters/low_rank/low_rank.h"

namespace limbeck::adapters {

// Parameters as PEFT stacks them: lora_A [E rank, in], the experts one after another, and lora_B [out, rank E], the
// experts side by side in each rank.
class LowRankExperts : public models::ExpertAdapter {
 public:
  LowRankExperts(const precision::Scope& scope, const precision::Precision& host, const LowRankShape& shape,
                 int64_t experts);
  at::Tensor forward(const at::Tensor& rows, const at::Tensor& ends, const models::ExpertStack& host) const override;
  models::MergedWeight merged(const models::ExpertStack& host) const override;
  models::UnmergedWeight unmerged(const models::ExpertStack& host) const override;
  // As LowRank: A a normal of variance 1 / (3 in), B zero.
  void initialize(const models::ExpertStack& host, uint64_t seed) override;

 private:
  at::Tensor whole_change() const;                    // s B A of all experts, wide, without a gradient
  at::Tensor by_expert_a(const at::Tensor& a) const;  // [E, rank, in]
  at::Tensor by_expert_b(const at::Tensor& b) const;  // [E, out, rank]

  LowRankShape shape_;
  int64_t experts_;
};

}  // namespace limbeck::adapters
