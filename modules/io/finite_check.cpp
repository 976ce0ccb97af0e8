#include "modules/io/finite_check.h"

#include <algorithm>
#include <cstring>

#include "modules/errors.h"

namespace limbeck::io {
namespace {

constexpr int64_t kBlock = 4096;  // elements judged before looking at the outcome; stays in the first-level cache

// Adding the lowest exponent bit to the exponent alone carries into the sign's place when, and only when, all exponent
// bits are set: three plain vector operations, where a comparison costs more on baseline x86-64.
template <typename Bits>
std::optional<int64_t> scan(const void* data, int64_t count, Bits exponent) {
  const auto lowest = static_cast<Bits>(exponent & (~exponent + 1u));
  const auto carry = static_cast<Bits>(exponent + lowest);  // the sign's place
  const auto* bytes = static_cast<const char*>(data);
  const auto load = [bytes](int64_t i) {
    Bits value;
    std::memcpy(&value, bytes + i * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    return value;
  };
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    Bits hit = 0;  // no branch inside: this loop is vectorised
    for (int64_t i = begin; i < end; ++i) hit = static_cast<Bits>(hit | ((load(i) & exponent) + lowest));
    if ((hit & carry) == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      if ((load(i) & exponent) == exponent) return i;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<int64_t> first_nonfinite(const void* data, int64_t count, at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return scan<uint64_t>(data, count, 0x7FF0000000000000u);
    case at::kFloat:
      return scan<uint32_t>(data, count, 0x7F800000u);
    case at::kBFloat16:
      return scan<uint16_t>(data, count, 0x7F80u);
    case at::kHalf:
      return scan<uint16_t>(data, count, 0x7C00u);
    case at::kFloat8_e5m2:
      return scan<uint8_t>(data, count, 0x7Cu);
    case at::kFloat8_e4m3fn:
      return scan<uint8_t>(data, count, 0x7Fu);  // has no infinities; all ones is NaN
    default:
      break;
  }
  if (!at::isIntegralType(type, /*includeBool=*/true)) {
    throw ContractError(std::string("finite check: got dtype ") + c10::toString(type) + ", wanted a real dtype");
  }
  return std::nullopt;
}

std::optional<int64_t> first_nonfinite(const at::Tensor& tensor) {
  if (!tensor.is_cpu()) {
    throw ContractError("finite check: got a tensor on " + tensor.device().str() + ", wanted cpu");
  }
  if (tensor.numel() == 0) return std::nullopt;
  if (tensor.is_contiguous()) return first_nonfinite(tensor.const_data_ptr(), tensor.numel(), tensor.scalar_type());
  // Slice by slice, so that no copy of the whole is made; a strided last dimension is copied a row at a time.
  if (tensor.dim() == 1) return first_nonfinite(tensor.contiguous());
  const int64_t slice = tensor.numel() / tensor.size(0);
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    if (const auto found = first_nonfinite(tensor.select(0, i))) return i * slice + *found;
  }
  return std::nullopt;
}

}  // namespace limbeck::io
