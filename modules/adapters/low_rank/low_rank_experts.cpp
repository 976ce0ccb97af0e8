#include "modules/adapters/low_rank/low_rank_experts.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/ones.h>

#include "kernels/grouped_linear/grouped_linear.h"
#include "modules/models/network/experts.h"

namespace limbeck::adapters {

LowRankExperts::LowRankExperts(const precision::Scope& scope, const precision::Precision& host,
                               const LowRankShape& shape, int64_t experts)
    : ExpertAdapter(scope, host), shape_(shape), experts_(experts) {
  create_parameter("lora_A", {experts * shape.rank, shape.in});
  create_parameter("lora_B", {shape.out, shape.rank * experts});
}

at::Tensor LowRankExperts::by_expert_a(const at::Tensor& a) const { return a.view({experts_, shape_.rank, shape_.in}); }

at::Tensor LowRankExperts::by_expert_b(const at::Tensor& b) const {
  return b.view({shape_.out, shape_.rank, experts_}).permute({2, 0, 1});
}

at::Tensor LowRankExperts::forward(const at::Tensor& rows, const at::Tensor& ends,
                                   const models::ExpertStack& host) const {
  const at::Tensor plain = host.product(rows, ends);
  const precision::ModuleScope scope(path());
  const at::Tensor a = by_expert_a(parameter("lora_A")), b = by_expert_b(parameter("lora_B")).contiguous();
  const at::Tensor change = kernels::grouped_linear(kernels::grouped_linear(enter(rows), a, ends), b, ends);
  return plain + leave(change * shape_.scale);
}

void LowRankExperts::initialize(const models::ExpertStack&, uint64_t seed) {
  if (placement().is_meta()) return;
  fill_low_rank(*this, seed, shape_.in);
}

at::Tensor LowRankExperts::whole_change() const {
  const at::NoGradGuard no_gradient;
  const at::Tensor a = by_expert_a(widened(parameter("lora_A"))), b = by_expert_b(widened(parameter("lora_B")));
  return at::bmm(b, a).mul_(shape_.scale);
}

models::MergedWeight LowRankExperts::merged(const models::ExpertStack& host) const {
  const at::NoGradGuard no_gradient;
  at::Tensor sum = whole_change();
  for (int64_t expert = 0; expert < experts_; ++expert)
    sum.narrow(0, expert, 1).add_(widened(host.weight_rows(expert, 1)));
  return {sum, std::nullopt};
}

models::UnmergedWeight LowRankExperts::unmerged(const models::ExpertStack& host) const {
  const at::NoGradGuard no_gradient;
  const at::Tensor weight = widened(host.weight()) - whole_change();
  return {weight, std::nullopt, at::ones({1}, weight.options())};
}

}  // namespace limbeck::adapters
