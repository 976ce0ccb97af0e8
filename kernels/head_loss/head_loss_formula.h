// The divergences of the fused head, for one vector of logits: value, and derivative by the student's logit.
// Differences of the two distributions come from the difference d of the log-probabilities and not from the
// probabilities, which would cancel when student and teacher are close; every summand of a value is nonnegative.
#pragma once
#include "kernels/cpu/elementary.h"
#include "kernels/head_loss/head_loss_loops.h"

namespace limbeck::kernels::LIMBECK_ISA {

using F = F32;

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
LIMBECK_INLINE F larger(F a, F b) { return a > b ? a : b; }

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
  const F e = exp_negative(-absolute(x));
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

// The families with a mixture m = (1 - kappa) p + kappa q: y = m / p - 1 = kappa (q / p - 1).
struct Mixed {
  F value;  // p (y - log(1 + y)), whose sum is KL(p || m)
  F y, log;
};
LIMBECK_INLINE Mixed mixed(F p, F q, F log_ratio, float kappa) {
  Mixed m;
  m.y = kappa * exponential_minus_one(log_ratio);
  F rest;
  m.log = log_of_one_plus(m.y, &rest);
  m.value = log_ratio > 30.0f ? kappa * (q - p) : p * rest;  // there the logarithm's share is below 1e-11 of q
  return m;
}

template <Divergence Kind>
LIMBECK_INLINE Terms divergence_terms(F a, F b, const RowLanes& row, float mix, bool wants_student) {
  Terms t{};
  if constexpr (Kind == Divergence::kNone) return t;
  if constexpr (Kind == Divergence::kLogitMse) {
    t.gradient = a - b;
    t.value = t.gradient * t.gradient;
    return t;
  }
  const F d = (a - b) - row.shift;
  const F p_t = exp_negative(b - row.teacher_max) * row.teacher_inverse;
  const auto far = absolute(d) > 0.5f;
  const F square = d * d;
  if constexpr (Kind == Divergence::kForwardKl) {
    const F rest = square * exponential_rest(d);
    t.value = p_t * rest;
    t.gradient = p_t * (d + rest);
    if (wants_student || any_lane(far)) {
      t.student = exp_negative(a - row.student_max) * row.student_inverse;
      const F difference = t.student - p_t;
      t.value = far ? difference - p_t * d : t.value;
      t.gradient = far ? difference : t.gradient;
    }
    // Not finite logits: whatever the series made of them, the result must be NaN.
    return t;
  }
  const F p_s = exp_negative(a - row.student_max) * row.student_inverse;
  t.student = p_s;
  F slope{};
  if constexpr (Kind == Divergence::kReverseKl) {
    t.value = far ? (p_t - p_s) + p_s * d : p_s * (square * exponential_rest(-d));
    slope = d;
  } else if constexpr (Kind == Divergence::kTotalVariation) {
    t.value = 0.5f * absolute(far ? p_s - p_t : p_t * fused(square, exponential_rest(d), d));
    slope = d > 0.0f ? splat(0.5f) : d < 0.0f ? splat(-0.5f) : d;  // NaN stays
  } else if constexpr (Kind == Divergence::kJensenShannon) {
    const Mixed of_teacher = mixed(p_t, p_s, d, 1.0f - mix), of_student = mixed(p_s, p_t, -d, mix);
    t.value = mix * of_teacher.value + (1.0f - mix) * of_student.value;
    slope = (mix - 1.0f) * of_student.log;
  } else if constexpr (Kind == Divergence::kSkewForwardKl) {
    const Mixed m = mixed(p_t, p_s, d, 1.0f - mix);
    t.value = m.value;
    slope = (1.0f - mix) * m.y / (1.0f + m.y);
  } else {
    const Mixed m = mixed(p_s, p_t, -d, 1.0f - mix);
    t.value = m.value;
    slope = mix * m.y / (1.0f + m.y) - m.log;
  }
  t.slope = p_s * slope;
  t.gradient = p_s * (slope - row.mean_slope);
  return t;
}

}  // namespace limbeck::kernels::LIMBECK_ISA
