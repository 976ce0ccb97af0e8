// One rotation in the plane of (first, second), once for CPU (V = 16 lanes) and CUDA (V = float or double).
#pragma once

#include "kernels/operator/formula.h"

namespace limbeck::kernels {

template <class V>
struct RotatedPair {
  V first;
  V second;
};

template <class V>
LIMBECK_FORMULA RotatedPair<V> rotated(const V& first, const V& second, const V& cos, const V& sin) {
  return {first * cos - second * sin, second * cos + first * sin};
}

}  // namespace limbeck::kernels
