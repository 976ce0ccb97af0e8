#include "modules/adapters/low_rank/learned_scale.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include "modules/models/network/parameter_modules.h"

namespace limbeck::adapters {

LearnedScale::LearnedScale(const precision::Scope& scope, const precision::Precision& host, Scaled what, int64_t width)
    : LinearAdapter(scope, host), what_(what) {
  create_parameter("ia3_l", what == Scaled::kInput ? std::vector<int64_t>{1, width} : std::vector<int64_t>{width, 1});
}

at::Tensor LearnedScale::forward(const at::Tensor& x, const models::Linear& host, const models::Draws&) const {
  const precision::ModuleScope scope(path());
  const at::Tensor factor = parameter("ia3_l").flatten();
  if (what_ == Scaled::kInput) return host.base_forward(leave(enter(x) * factor));
  return leave(enter(host.base_forward(x)) * factor);
}

models::ProductOperands LearnedScale::operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                               const models::Draws&) const {
  const precision::ModuleScope scope(path());
  const at::Tensor factor = learns ? parameter("ia3_l") : parameter("ia3_l").detach();  // a row or a column
  const at::Tensor weight = host.operand();
  if (what_ == Scaled::kInput) return {leave(enter(x) * factor.flatten()), weight};
  return {x, weight * precision::cast(factor, precision().storage, weight.scalar_type(), path() + " (factor)")};
}

void LearnedScale::initialize(const models::Linear&, uint64_t) {
  if (!placement().is_meta()) parameter("ia3_l").detach().fill_(1.0);
}

models::MergedWeight LearnedScale::merged(const models::Linear& host) const {
  const at::NoGradGuard no_gradient;
  const at::Tensor factor = widened(parameter("ia3_l"));  // a row or a column
  models::MergedWeight merged{widened(host.weight_rows(0, host.out_features())) * factor, host.bias()};
  if (merged.bias) merged.bias = widened(*merged.bias);
  if (merged.bias && what_ == Scaled::kOutput) merged.bias = *merged.bias * factor.flatten();
  return merged;
}

std::string LearnedScale::unmerge_fault() const {
  const at::Tensor zeros = parameter("ia3_l").detach().flatten().eq(0).nonzero();
  if (zeros.numel() == 0) return "";
  return fmt::format("has {} factors of zero in ia3_l, the first at {}: nothing is left of the {} that they multiplied",
                     zeros.numel(), zeros[0].item<int64_t>(), what_ == Scaled::kInput ? "columns" : "rows");
}

models::UnmergedWeight LearnedScale::unmerged(const models::Linear& host) const {
  const at::NoGradGuard no_gradient;
  const at::Tensor factor = widened(parameter("ia3_l"));
  models::UnmergedWeight unmerged{widened(host.weight()) / factor, host.bias(), factor.abs().reciprocal()};
  if (unmerged.bias) unmerged.bias = widened(*unmerged.bias);
  if (unmerged.bias && what_ == Scaled::kOutput) unmerged.bias = *unmerged.bias / factor.flatten();
  return unmerged;
}

}  // namespace limbeck::adapters
