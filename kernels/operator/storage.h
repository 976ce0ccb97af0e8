// How the elements of a tensor are stored, for code that must not see torch's headers: the inner CPU loops (built once
// for each instruction set) and the .cu files (nvcc takes minutes over torch's headers).
#pragma once
#include <cstdint>

// A function that is never emitted, so that no instruction set's code stands in for another's.
#define LIMBECK_INLINE inline __attribute__((always_inline))

namespace limbeck::kernels {

enum class Storage : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

// Bit patterns; the arithmetic type is float32 (float64 for float64 storage).
struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

template <class T>
struct ComputeOf {
  using Type = float;
};
template <>
struct ComputeOf<double> {
  using Type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::Type;

template <class T>
struct StorageTag {
  using Type = T;
};

// Calls body(tag), decltype(tag)::Type being the element type.
template <class Body>
LIMBECK_INLINE void with_storage(Storage storage, Body body) {
  switch (storage) {
    case Storage::kFloat32:
      return body(StorageTag<float>{});
    case Storage::kBFloat16:
      return body(StorageTag<BFloat16Bits>{});
    case Storage::kFloat16:
      return body(StorageTag<Float16Bits>{});
    case Storage::kFloat64:
      return body(StorageTag<double>{});
  }
}

}  // namespace limbeck::kernels
