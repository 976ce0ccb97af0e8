#include "modules/precision/precision.h"

#include <fmt/format.h>
#include <array>

#include "modules/errors.h"

namespace limbeck::precision {

namespace {
struct DtypeName {
  const char* name;
  at::ScalarType dtype;
};
constexpr std::array<DtypeName, 4> kTrainable = {
    {{"float32", at::kFloat}, {"bfloat16", at::kBFloat16}, {"float16", at::kHalf}, {"float64", at::kDouble}}};
}  // namespace

const char* role_name(Role role) {
  switch (role) {
    case Role::kEmbedding:
      return "embedding";
    case Role::kNorm:
      return "norm";
    case Role::kAttention:
      return "attention";
    case Role::kMixer:
      return "mixer";
    case Role::kBkCore:
      return "bk_core";
    case Role::kMlp:
      return "mlp";
    case Role::kRouter:
      return "router";
    case Role::kExpert:
      return "expert";
    case Role::kHead:
      return "head";
    case Role::kProjector:
      return "projector";
    case Role::kAdapter:
      return "adapter";
  }
  return "unknown";
}

at::ScalarType dtype_from_name(const std::string& name) {
  for (const auto& known : kTrainable) {
    if (name == known.name) return known.dtype;
  }
  throw UsageError(fmt::format("dtype \"{}\" is not known: wanted float32, bfloat16, float16 or float64", name));
}

std::string dtype_name(at::ScalarType dtype) {
  for (const auto& known : kTrainable) {
    if (dtype == known.dtype) return known.name;
  }
  return dtype == at::kChar ? "int8" : c10::toString(dtype);
}

std::string storage_name(const Precision& precision) {
  return precision.quantized ? kernels::format_name(*precision.quantized) : dtype_name(precision.storage);
}

}  // namespace limbeck::precision
