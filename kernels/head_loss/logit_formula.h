// From a product of hidden state and weight to a logit, and from the logits of one id to what it adds to the
// divergence, once for the vectors of the CPU (head_loss_formula.h) and for CUDA (head_loss.cu). Beyond the operations
// of divergence_formula.h, Ops has splat(number), tanh_of(x) and exp_of_nonpositive(x).
#pragma once
#include "kernels/head_loss/divergence_formula.h"

namespace limbeck::kernels {

struct HeadFormula {
  Divergence divergence = Divergence::kNone;
  bool has_ce = false;
  bool ce_shares = false;    // cross-entropy's softmax is that of the divergence
  bool has_softmax = false;  // of the divergence
  float mix = 0, inverse_temperature = 1, clamp = 0, smoothing = 0;
  float student_scale = 1, teacher_scale = 1, student_cap = 0, teacher_cap = 0;
  int64_t vocabulary = 0;

  LIMBECK_FORMULA bool has_divergence() const { return divergence != Divergence::kNone; }
};

// Of one token, over its vocabulary.
template <class Value>
struct LogitRow {
  Value student_max, student_inverse, teacher_max, teacher_inverse;  // inverse: 1 / sum of exp(logit - max)
  Value shift;       // log-sum-exp of the student minus that of the teacher
  Value mean_slope;  // sum of p_s dD/dp_s
};

template <class Value>
struct LogitTerms {
  Value value;     // summand of the divergence
  Value slope;     // p_s dD/dp_s, to be summed over the vocabulary
  Value gradient;  // derivative by the tempered student logit (times 2 / V for the squared error)
  Value student;   // p_s
};

// z * scale, softly capped; slope receives the derivative by z.
template <class Ops>
LIMBECK_FORMULA typename Ops::Value plain_logit(typename Ops::Value z, typename Ops::Number scale,
                                                typename Ops::Number cap, typename Ops::Value* slope) {
  const typename Ops::Number one(1);
  *slope = Ops::splat(scale);
  z = z * scale;
  if (cap == typename Ops::Number(0)) return z;
  const typename Ops::Value t = Ops::tanh_of(z / cap);
  *slope = scale * ((one - t) * (one + t));
  return t * cap;
}

// The logit of the divergence from a plain one; slope receives the derivative by the plain one.
template <class Ops>
LIMBECK_FORMULA typename Ops::Value tempered_logit(typename Ops::Value plain, const HeadFormula& f,
                                                   typename Ops::Value* slope) {
  const typename Ops::Value t = plain * f.inverse_temperature;
  *slope = Ops::splat(f.inverse_temperature);
  if (f.clamp == 0.0f) return t;
  *slope = Ops::either(Ops::above(Ops::size(t), f.clamp), Ops::splat(0.0f), *slope);
  const typename Ops::Value high = Ops::splat(f.clamp);
  return Ops::either(Ops::above(t, f.clamp), high, Ops::either(Ops::above(-t, f.clamp), -high, t));
}

// a, b: the tempered logits of student and teacher.
template <Divergence Kind, class Ops>
LIMBECK_FORMULA LogitTerms<typename Ops::Value> logit_terms(const typename Ops::Value& a, const typename Ops::Value& b,
                                                            const LogitRow<typename Ops::Value>& row,
                                                            typename Ops::Number mix, bool wants_student) {
  using Value = typename Ops::Value;
  LogitTerms<Value> t{};
  if constexpr (Kind == Divergence::kNone) {
    return t;
  } else {
    const Value d = Kind == Divergence::kLogitMse ? a - b : (a - b) - row.shift;
    const Value p_t =
        Kind == Divergence::kLogitMse ? Value{} : Ops::exp_of_nonpositive(b - row.teacher_max) * row.teacher_inverse;
    bool has_student = false;
    const auto student = [&]() {
      has_student = true;
      return t.student = Ops::exp_of_nonpositive(a - row.student_max) * row.student_inverse;
    };
    const auto of_kind = divergence_terms<Kind, Ops>(d, p_t, mix, student);
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
}

}  // namespace limbeck::kernels
