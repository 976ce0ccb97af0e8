#include "modules/adapters/folder/stored_values.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {

void take_stored(at::Tensor target, const at::Tensor& stored, const std::string& file, const std::string& name) {
  precision::cast_into(target, stored);
  if (precision::move(target, c10::kCPU).isfinite().all().item<bool>()) return;
  throw WeightsError(
      fmt::format("{}: tensor {} is not finite in {}", file, name, precision::dtype_name(target.scalar_type())));
}

}  // namespace limbeck::adapters
