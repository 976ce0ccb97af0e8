// exp and tanh of the vectors of simd.h.
#pragma once
#include "kernels/cpu/simd.h"

namespace limbeck::kernels::LIMBECK_ISA {

// exp of arguments <= 0: 2^n times the Taylor series over |r| <= ln 2 / 2, whose ninth term is below half an ulp.
// exp(0) is 1 exactly; below -87 (where float32 turns denormal) the result is 0.
LIMBECK_INLINE F32 exp_negative(F32 x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const F32 bounded = x < -87.0f ? splat(-87.0f) : x;
  const F32 n = fused(bounded, splat(1.44269504f), splat(kRound)) - kRound;
  F32 r = fused(n, splat(-0.693359375f), bounded);  // ln 2 in two parts; n times the first is exact
  r = fused(n, splat(2.12194440e-4f), r);
  F32 series = splat(1.0f / 5040);
  series = fused(series, r, splat(1.0f / 720));
  series = fused(series, r, splat(1.0f / 120));
  series = fused(series, r, splat(1.0f / 24));
  series = fused(series, r, splat(1.0f / 6));
  series = fused(series, r, splat(0.5f));
  series = fused(series, r, splat(1.0f));
  series = fused(series, r, splat(1.0f));
  const I32 exponent = (__builtin_convertvector(n, I32) + 127) << 23;
  const F32 result = series * (F32)exponent;
  return x < -87.0f ? F32{} : result;
}
LIMBECK_INLINE F64 exp_negative(F64 x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

LIMBECK_INLINE F32 tanh_of(F32 x) {
  const F32 size = x < 0.0f ? -x : x;
  const F32 e = exp_negative(-2.0f * size);
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
