#include "modules/adapters/trained_codes/seen_linear.h"

#include <ATen/core/grad_mode.h>

#include <stdexcept>
#include <utility>

#include "kernels/quantized/straight_through.h"

namespace limbeck::adapters {

SeenLinear::SeenLinear(const precision::Scope& scope, const models::Linear& host, const models::Linear& stored,
                       std::shared_ptr<const models::ModelRequest> folder)
    : LinearAdapter(scope, host.precision()), folder_(std::move(folder)) {
  pack_as(stored);
}

at::Tensor SeenLinear::forward(const at::Tensor& x, const models::Linear& host, const models::Draws&) const {
  const precision::ModuleScope scope(path());
  return leave(kernels::straight_through_linear(enter(x), host.weight(), format(), host.bias(), folder_->scales));
}

models::ProductOperands SeenLinear::operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                             const models::Draws&) const {
  const precision::ModuleScope scope(path());
  const at::Tensor weight = learns ? host.weight() : host.weight().detach();
  return {x, kernels::seen_through_format(weight, format(), folder_->scales)};
}

precision::PackedWeight SeenLinear::codes(const models::Linear& host) const {
  return {host.weight(), format(), host.placement(), folder_->scales};
}

models::MergedWeight SeenLinear::merged(const models::Linear& host) const {
  const at::NoGradGuard no_gradient;
  models::MergedWeight merged{codes(host).rows(0, host.out_features()), host.bias()};
  if (merged.bias) merged.bias = widened(*merged.bias);
  return merged;
}

models::UnmergedWeight SeenLinear::unmerged(const models::Linear& host) const {
  throw std::logic_error(host.path() + ": " + unmerge_fault());
}

std::string SeenLinear::unmerge_fault() const { return "is rounded to its codes, which do not tell what was there"; }

void SeenLinear::initialize(const models::Linear&, uint64_t) {}

}  // namespace limbeck::adapters
