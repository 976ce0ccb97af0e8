// exp and tanh of the vectors of simd.h.
#pragma once
#include "kernels/cpu/simd.h"

namespace limbeck::kernels::LIMBECK_ISA {

// exp(x) from -87, where results turn subnormal, to 0 (or a little more, where rounding made it so): within 0.89 units
// in the last place, 1.18 where products and sums are rounded apart. exp(0) is 1 exactly.
LIMBECK_INLINE F32 exp_within_bounds(F32 x) {
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves n in the low bits of the sum.
  const F32 shifted = fused(x, splat(1.44269504f), splat(12582912.0f));
  const F32 n = shifted - 12582912.0f;
  const F32 r = fused(n, splat(2.12194440e-4f), fused(n, splat(-0.693359375f), x));  // ln 2 in two parts
  // exp(r) = 1 + r + r^2 p(r), p fitted to the least greatest relative error on |r| <= ln 2 / 2: 3e-9.
  F32 p = fused(r, splat(0.00138145394f), splat(0.00836874545f));
  p = fused(p, r, splat(0.0416683890f));
  p = fused(p, r, splat(0.166665211f));
  p = fused(p, r, splat(0.49999994f));
  p = fused(fused(p, r, splat(1.0f)), r, splat(1.0f));
  return (F32)((U32)p + ((U32)shifted << 23));
}
// 0 below, and of -inf; of denormals 1; a NaN stays one.
LIMBECK_INLINE F32 exp_of_nonpositive(F32 x) { return x >= -87.0f ? exp_within_bounds(x) : x < 0.0f ? F32{} : x; }
LIMBECK_INLINE F64 exp_of_nonpositive(F64 x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

LIMBECK_INLINE F32 tanh_of(F32 x) {
  const F32 size = x < 0.0f ? -x : x;
  const F32 e = exp_of_nonpositive(-2.0f * size);
  const F32 far = (1.0f - e) / (1.0f + e);
  // 1 - e cancels near zero: there the odd series to x^11, whose next term is below 1e-9 of x at 0.3.
  const F32 y = x * x;
  F32 series = splat(-1382.0f / 155925);
  series = fused(series, y, splat(62.0f / 2835));
  series = fused(series, y, splat(-17.0f / 315));
  series = fused(series, y, splat(2.0f / 15));
  series = fused(series, y, splat(-1.0f / 3));
  const F32 near = fused(series * y, x, x);
  return size < 0.3f ? near : x < 0.0f ? -far : far;
}
LIMBECK_INLINE F64 tanh_of(F64 x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = __builtin_tanh(x[i]);
  return x;
}

}  // namespace limbeck::kernels::LIMBECK_ISA
