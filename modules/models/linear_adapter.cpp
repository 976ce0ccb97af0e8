#include "modules/models/linear_adapter.h"

#include "modules/precision/casts.h"

namespace limbeck::models {

at::Tensor LinearAdapter::widened(const at::Tensor& weight) const {
  const at::ScalarType from = weight.scalar_type();
  return precision::cast(weight.detach(), from, from == at::kDouble ? at::kDouble : at::kFloat, path() + " (widened)");
}

}  // namespace limbeck::models
