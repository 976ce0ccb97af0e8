// How far an operator's result may lie from the same computation in float64: |ours - wanted| <= relative |wanted| +
// absolute * max(1, the largest |wanted|). The one table for all operators.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace limbeck::test {

struct Tolerance {
  double relative;
  double absolute;
};

inline Tolerance tolerance_of(at::ScalarType type) {
  // float32 arithmetic: a few dozen roundings of 6e-8, and sums of up to some thousand terms in several lanes.
  constexpr double kArithmetic = 3e-6;
  switch (type) {
    case at::kDouble:
      return {1e-13, 1e-13};
    case at::kFloat:
      return {kArithmetic, kArithmetic};
    // One rounding to nearest is at most half a unit in the last place: 2^-8 (8 significant bits), 2^-11 (11 bits).
    case at::kBFloat16:
      return {0x1p-8 + kArithmetic, kArithmetic};
    case at::kHalf:
      return {0x1p-11 + kArithmetic, kArithmetic};
    default:
      TORCH_CHECK(false, "no tolerance for ", type);
  }
}

}  // namespace limbeck::test
