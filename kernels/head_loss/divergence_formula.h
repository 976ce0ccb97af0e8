// The divergences, once for all who compute them: what one id adds to the value, and the slope its gradient is made of.
// Differences of the two distributions come from d = log(p_s / p_t), the difference of the log-probabilities, and not
// from the probabilities, which would cancel when student and teacher are close; every summand of a value is
// nonnegative.
//
// Ops says how: vectors of the CPU (head_loss_formula.h), tensors (divergence_tensors.cpp), numbers on the host and in
// a .cu (divergence_numbers.h). It has a Value with arithmetic, the Number that Values are multiplied by, and
//   far(d)               |d| > 0.5
//   above(x, number)     x > number
//   any(mask)            may say yes too often
//   either(mask, a, b)   mask ? a : b
//   size(x), sign(x)     |x|; 1, 0 or -1, and NaN of NaN
//   excess(d)            e^d - 1 - d >= 0, where d is not far
//   less_one_near(d)     e^d - 1, where d is not far
//   less_one(x)          e^x - 1; beyond 80, as at 80
//   log_of_one_plus(y, &rest)   and rest = y - log(1 + y) >= 0, for y > -1
#pragma once
#include "kernels/head_loss/divergence.h"
#include "kernels/operator/formula.h"

namespace limbeck::kernels {

// The sums over the ids of `value` (for kLogitMse their mean) are the divergence. The gradient by the student's logits
// is p_s (slope - sum of p_s slope) where needs_mean_slope(), otherwise the slope itself (kLogitMse: times 2 / ids).
template <class Ops>
struct DivergenceTerms {
  typename Ops::Value value, slope;
};

// The families with a mixture m = (1 - kappa) p + kappa q: y = m / p - 1 = kappa (q / p - 1).
template <class Ops>
struct MixtureTerms {
  typename Ops::Value value;  // p (y - log(1 + y)), whose sum is KL(p || m)
  typename Ops::Value y, log;
};
template <class Ops>
LIMBECK_FORMULA MixtureTerms<Ops> mixture_terms(const typename Ops::Value& p, const typename Ops::Value& q,
                                                const typename Ops::Value& log_ratio, typename Ops::Number kappa) {
  using Number = typename Ops::Number;
  MixtureTerms<Ops> m;
  m.y = kappa * Ops::less_one(log_ratio);
  typename Ops::Value rest;
  m.log = Ops::log_of_one_plus(m.y, &rest);
  // Above 30 the logarithm's share is below 1e-11 of q.
  m.value = Ops::either(Ops::above(log_ratio, Number(30)), kappa * (q - p), p * rest);
  return m;
}

// d = log(p_s / p_t), or of kLogitMse the difference of the logits; mix: beta or alpha of divergence.h. student() is
// p_s, asked for only where it is needed.
template <Divergence Kind, class Ops, class Student>
LIMBECK_FORMULA DivergenceTerms<Ops> divergence_terms(const typename Ops::Value& d, const typename Ops::Value& p_t,
                                                      typename Ops::Number mix, const Student& student) {
  using Value = typename Ops::Value;
  [[maybe_unused]] const typename Ops::Number one(1), half(0.5);
  if constexpr (Kind == Divergence::kLogitMse) {
    return {d * d, d};
  } else if constexpr (Kind == Divergence::kForwardKl) {
    DivergenceTerms<Ops> t{p_t * Ops::excess(d), p_t * Ops::less_one_near(d)};
    const auto far = Ops::far(d);
    if (Ops::any(far)) {
      const Value difference = student() - p_t;
      t.value = Ops::either(far, difference - p_t * d, t.value);
      t.slope = Ops::either(far, difference, t.slope);
    }
    return t;
  } else if constexpr (Kind == Divergence::kReverseKl) {
    const Value p_s = student();
    return {Ops::either(Ops::far(d), (p_t - p_s) + p_s * d, p_s * Ops::excess(-d)), d};
  } else if constexpr (Kind == Divergence::kTotalVariation) {
    const Value p_s = student();
    const Value difference = Ops::either(Ops::far(d), p_s - p_t, p_t * Ops::less_one_near(d));
    return {half * Ops::size(difference), half * Ops::sign(d)};
  } else if constexpr (Kind == Divergence::kJensenShannon) {
    const Value p_s = student();
    const auto of_teacher = mixture_terms<Ops>(p_t, p_s, d, one - mix);
    const auto of_student = mixture_terms<Ops>(p_s, p_t, -d, mix);
    return {mix * of_teacher.value + (one - mix) * of_student.value, (mix - one) * of_student.log};
  } else if constexpr (Kind == Divergence::kSkewForwardKl) {
    const auto m = mixture_terms<Ops>(p_t, student(), d, one - mix);
    return {m.value, m.y / (one + m.y) * (one - mix)};
  } else {
    static_assert(Kind == Divergence::kSkewReverseKl, "a divergence without a formula");
    const auto m = mixture_terms<Ops>(student(), p_t, -d, one - mix);
    return {m.value, m.y / (one + m.y) * mix - m.log};
  }
}

}  // namespace limbeck::kernels
