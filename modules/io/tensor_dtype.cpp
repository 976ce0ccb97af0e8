#include "modules/io/tensor_dtype.h"

namespace limbeck::io {
namespace {

constexpr std::array<at::ScalarType, kStoredTypes> kScalars{
    at::kDouble, at::kFloat, at::kHalf, at::kBFloat16,      at::kLong,       at::kInt, at::kShort,
    at::kChar,   at::kByte,  at::kBool, at::kFloat8_e4m3fn, at::kFloat8_e5m2};  // in the order of StoredType

}  // namespace

at::ScalarType scalar_type(StoredType type) { return kScalars[static_cast<size_t>(type)]; }

std::optional<StoredType> stored_type(at::ScalarType type) {
  for (size_t i = 0; i < kScalars.size(); ++i) {
    if (kScalars[i] == type) return static_cast<StoredType>(i);
  }
  return std::nullopt;
}

}  // namespace limbeck::io
