// The operations of divergence_formula.h and logit_formula.h on one vector of logits.
#pragma once
#include "kernels/cpu/near_zero.h"
#include "kernels/head_loss/head_loss_loops.h"
#include "kernels/head_loss/logit_formula.h"

namespace limbeck::kernels::LIMBECK_ISA {

using F = F32;

LIMBECK_INLINE F larger(F a, F b) { return a > b ? a : b; }

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

  static LIMBECK_INLINE F splat(float x) { return kernels::LIMBECK_ISA::splat(x); }
  static LIMBECK_INLINE F tanh_of(F x) { return kernels::LIMBECK_ISA::tanh_of(x); }
  static LIMBECK_INLINE F exp_of_nonpositive(F x) { return kernels::LIMBECK_ISA::exp_of_nonpositive(x); }
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

using RowLanes = LogitRow<F>;
using Terms = LogitTerms<F>;

LIMBECK_INLINE F plain_logit(F z, float scale, float cap, F* slope) {
  return kernels::plain_logit<VectorOps>(z, scale, cap, slope);
}
LIMBECK_INLINE F tempered_logit(F plain, const HeadFormula& f, F* slope) {
  return kernels::tempered_logit<VectorOps>(plain, f, slope);
}
template <Divergence Kind>
LIMBECK_INLINE Terms logit_terms(F a, F b, const RowLanes& row, float mix, bool wants_student) {
  return kernels::logit_terms<Kind, VectorOps>(a, b, row, mix, wants_student);
}

}  // namespace limbeck::kernels::LIMBECK_ISA
