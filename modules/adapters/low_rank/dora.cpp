#include "modules/adapters/low_rank/dora.h"

#include "modules/precision/casts.h"

namespace limbeck::adapters {

namespace {

at::Tensor wide_factor(const precision::ContractModule& adapter, const at::Tensor& norms) {
  const at::Tensor magnitude = precision::cast(adapter.parameter(kMagnitude), adapter.precision().storage,
                                               norms.scalar_type(), adapter.path() + " (magnitude)");
  return magnitude / norms;
}

at::Tensor narrowed(const precision::ContractModule& adapter, const at::Tensor& wide) {
  return precision::cast(wide, wide.scalar_type(), adapter.precision().output, adapter.path() + " (direction)");
}

}  // namespace

at::Tensor dora_factor(const precision::ContractModule& adapter, const at::Tensor& norms) {
  return narrowed(adapter, wide_factor(adapter, norms));
}

at::Tensor dora_excess(const precision::ContractModule& adapter, const at::Tensor& norms) {
  return narrowed(adapter, wide_factor(adapter, norms) - 1.0);
}

}  // namespace limbeck::adapters
