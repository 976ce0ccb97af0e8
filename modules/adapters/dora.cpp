#include "modules/adapters/dora.h"

#include "modules/precision/casts.h"

namespace limbeck::adapters {

at::Tensor dora_factor(const precision::ContractModule& adapter, const at::Tensor& norms) {
  const at::ScalarType wide = norms.scalar_type();
  const at::Tensor magnitude = precision::cast(adapter.parameter(kMagnitude), adapter.precision().storage, wide,
                                               adapter.path() + " (magnitude)");
  return precision::cast(magnitude / norms, wide, adapter.precision().output, adapter.path() + " (direction)");
}

}  // namespace limbeck::adapters
