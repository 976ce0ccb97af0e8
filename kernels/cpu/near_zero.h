// exp near 0 without cancellation, on the vectors of simd.h.
#pragma once
#include "kernels/cpu/elementary.h"

namespace limbeck::kernels::LIMBECK_ISA {

LIMBECK_INLINE bool any_lane(I32 mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  bool any = false;
  for (int64_t i = 0; i < kLanes<float>; ++i) any |= mask[i] != 0;
  return any;
#endif
}

LIMBECK_INLINE F32 absolute(F32 x) { return (F32)((U32)x & 0x7fffffffu); }

// (exp(x) - 1 - x) / x^2 for |x| <= 0.5: positive; the first term left out is below 2^-24 of the sum.
LIMBECK_INLINE F32 exponential_rest(F32 x) {
  F32 p = splat(1.0f / 40320);
  p = fused(p, x, splat(1.0f / 5040));
  p = fused(p, x, splat(1.0f / 720));
  p = fused(p, x, splat(1.0f / 120));
  p = fused(p, x, splat(1.0f / 24));
  p = fused(p, x, splat(1.0f / 6));
  return fused(p, x, splat(0.5f));
}

// exp(x) - 1 for |x| <= 80; beyond, as at 80.
LIMBECK_INLINE F32 exponential_minus_one(F32 x) {
  x = x > 80.0f ? splat(80.0f) : x;
  const F32 small = fused(x * x, exponential_rest(x), x);
  const F32 e = exp_of_nonpositive(-absolute(x));
  const F32 far = (x > 0.0f ? 1.0f / e : e) - 1.0f;
  return absolute(x) <= 0.5f ? small : far;
}

}  // namespace limbeck::kernels::LIMBECK_ISA
