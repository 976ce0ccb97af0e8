// One rotation in the plane of (first, second), once for CPU (V = 16 lanes) and CUDA (V = float or double).
#pragma once

#if defined(__CUDACC__)
#define LIMBECK_ROTATION __host__ __device__ __forceinline__
#else
#define LIMBECK_ROTATION inline __attribute__((always_inline))
#endif

namespace limbeck::kernels {

template <class V>
struct RotatedPair {
  V first;
  V second;
};

template <class V>
LIMBECK_ROTATION RotatedPair<V> rotated(const V& first, const V& second, const V& cos, const V& sin) {
  return {first * cos - second * sin, second * cos + first * sin};
}

}  // namespace limbeck::kernels
