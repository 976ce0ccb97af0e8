#include "modules/models/linear_adapter.h"

#include <stdexcept>

#include "modules/precision/casts.h"

namespace limbeck::models {

UnmergedLinear LinearAdapter::unmerged(const Linear&) const {
  throw std::logic_error(path() + ": " + LinearAdapter::unmerge_fault());
}

std::string LinearAdapter::unmerge_fault() const { return "is of a kind that cannot be taken out of merged weights"; }

at::Tensor LinearAdapter::widened(const at::Tensor& weight) const {
  const at::ScalarType from = weight.scalar_type();
  return precision::cast(weight.detach(), from, from == at::kDouble ? at::kDouble : at::kFloat, path() + " (widened)");
}

}  // namespace limbeck::models
