// The fused head's formulas for one vector of logits: the operations of divergence_formula.h, the logits, and from them
// the divergence's value and gradient.
#pragma once
#include "kernels/cpu/elementary.h"
#include "kernels/head_loss/divergence_formula.h"
#include "kernels/head_loss/head_loss_loops.h"

namespace limbeck::kernels::LIMBECK_ISA {

using F = F32;

LIMBECK_INLINE F larger(F a, F b) { return a > b ? a : b; }

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

LIMBECK_INLINE F absolute(F x) { return (F)((U32)x & 0x7fffffffu); }

// (exp(x) - 1 - x) / x^2 for |x| <= 0.5: positive; the first term left out is below 2^-24 of the sum.
LIMBECK_INLINE F exponential_rest(F x) {
  F p = splat(1.0f / 40320);
  p = fused(p, x, splat(1.0f / 5040));
  p = fused(p, x, splat(1.0f / 720));
  p = fused(p, x, splat(1.0f / 120));
  p = fused(p, x, splat(1.0f / 24));
  p = fused(p, x, splat(1.0f / 6));
  return fused(p, x, splat(0.5f));
}

// exp(x) - 1 for |x| <= 80; beyond, as at 80.
LIMBECK_INLINE F exponential_minus_one(F x) {
  x = x > 80.0f ? splat(80.0f) : x;
  const F small = fused(x * x, exponential_rest(x), x);
  const F e = exp_of_nonpositive(-absolute(x));
  const F far = (x > 0.0f ? 1.0f / e : e) - 1.0f;
  return absolute(x) <= 0.5f ? small : far;
}

// log(1 + y) for y > -1, and rest = y - log(1 + y) >= 0 without cancellation.
LIMBECK_INLINE F log_of_one_plus(F y, F* rest) {
  // 1 + y = 2^e f with f in [0.707, 1.414); where e is 0, y itself keeps the low bits that 1 + y loses.
  const F u = y + 1.0f;
  const I32 bits = (I32)u;
  const I32 e = (bits - 0x3f3504f3) >> 23;
  const F f = (F)(bits - (e << 23));
  const F z = e == 0 ? y : f - 1.0f;
  const F s = z / (z + 2.0f), q = s * s;  // log(1 + z) = 2 atanh(s), |s| <= 0.172
  F series = splat(2.0f / 11);
  series = fused(series, q, splat(2.0f / 9));
  series = fused(series, q, splat(2.0f / 7));
  series = fused(series, q, splat(2.0f / 5));
  series = fused(series, q, splat(2.0f / 3));
  const F cubic = s * q * series;
  const F n = __builtin_convertvector(e, F);
  const F result = fused(n, splat(0.693147180f), fused(splat(2.0f), s, cubic));
  *rest = e == 0 ? fused(s, z, -cubic) : y - result;
  return result;
}

struct VectorOps {
  using Value = F;
  using Number = float;

  static LIMBECK_INLINE I32 far(F d) { return absolute(d) > 0.5f; }
  static LIMBECK_INLINE I32 above(F x, float number) { return x > number; }
  static LIMBECK_INLINE bool any(I32 mask) { return any_lane(mask); }
  static LIMBECK_INLINE F either(I32 mask, F a, F b) { return mask ? a : b; }
  static LIMBECK_INLINE F size(F x) { return absolute(x); }
  static LIMBECK_INLINE F sign(F x) { return x > 0.0f ? splat(1.0f) : x < 0.0f ? splat(-1.0f) : x; }
  static LIMBECK_INLINE F excess(F d) { return d * d * exponential_rest(d); }
  static LIMBECK_INLINE F less_one_near(F d) { return d + excess(d); }
  static LIMBECK_INLINE F less_one(F x) { return exponential_minus_one(x); }
  static LIMBECK_INLINE F log_of_one_plus(F y, F* rest) { return kernels::LIMBECK_ISA::log_of_one_plus(y, rest); }
};

// z * scale, softly capped; slope receives the derivative by z.
LIMBECK_INLINE F plain_logit(F z, float scale, float cap, F* slope) {
  *slope = splat(scale);
  z = z * scale;
  if (cap == 0.0f) return z;
  const F t = tanh_of(z / cap);
  *slope = scale * ((1.0f - t) * (1.0f + t));
  return t * cap;
}

// The logit of the divergence from a plain one; slope receives the derivative by the plain one.
LIMBECK_INLINE F tempered_logit(F plain, const HeadFormula& f, F* slope) {
  const F t = plain * f.inverse_temperature;
  *slope = splat(f.inverse_temperature);
  if (f.clamp == 0.0f) return t;
  *slope = absolute(t) > f.clamp ? F{} : *slope;
  return t > f.clamp ? splat(f.clamp) : t < -f.clamp ? splat(-f.clamp) : t;
}

struct RowLanes {
  F student_max, student_inverse, teacher_max, teacher_inverse, shift, mean_slope;
};

struct Terms {
  F value;     // summand of the divergence
  F slope;     // p_s dD/dp_s, to be summed over the vocabulary
  F gradient;  // derivative by the tempered student logit (times 2 / V for the squared error)
  F student;   // p_s
};

template <Divergence Kind>
LIMBECK_INLINE Terms logit_terms(F a, F b, const RowLanes& row, float mix, bool wants_student) {
  Terms t{};
  if constexpr (Kind == Divergence::kNone) return t;
  const F d = Kind == Divergence::kLogitMse ? a - b : (a - b) - row.shift;
  const F p_t = Kind == Divergence::kLogitMse ? F{} : exp_of_nonpositive(b - row.teacher_max) * row.teacher_inverse;
  bool has_student = false;
  const auto student = [&]() {
    has_student = true;
    return t.student = exp_of_nonpositive(a - row.student_max) * row.student_inverse;
  };
  const auto of_kind = divergence_terms<Kind, VectorOps>(d, p_t, mix, student);
  t.value = of_kind.value;
  if constexpr (needs_mean_slope(Kind)) {
    t.slope = t.student * of_kind.slope;
    t.gradient = t.student * (of_kind.slope - row.mean_slope);
  } else {
    t.gradient = of_kind.slope;
    if (wants_student && !has_student) student();
  }
  return t;
}

}  // namespace limbeck::kernels::LIMBECK_ISA
