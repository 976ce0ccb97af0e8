// The divergences that the head knows, without torch's headers. A new one is a line of each of these, its formula in
// divergence_formula.h, and its name (head_loss_checks.cpp).
#pragma once
#include <cstdint>

#include "kernels/operator/storage.h"

namespace limbeck::kernels {

enum class Divergence : int64_t {
  kNone,            // cross-entropy alone; no teacher needed
  kForwardKl,       // KL(p_t || p_s)
  kReverseKl,       // KL(p_s || p_t)
  kJensenShannon,   // beta KL(p_t || m) + (1 - beta) KL(p_s || m), m = beta p_t + (1 - beta) p_s
  kSkewForwardKl,   // KL(p_t || alpha p_t + (1 - alpha) p_s)
  kSkewReverseKl,   // KL(p_s || alpha p_s + (1 - alpha) p_t)
  kTotalVariation,  // 1/2 sum |p_t - p_s|
  kLogitMse,        // mean over the vocabulary of (z_s - z_t)^2; no softmax, no temperature
};

// Whether the gradient needs a sum over the vocabulary beyond the log-sum-exps.
constexpr bool needs_mean_slope(Divergence d) {
  return d != Divergence::kNone && d != Divergence::kForwardKl && d != Divergence::kLogitMse;
}

// D(p_s, p_t) as a divergence of the same list from p_t to p_s, whose slope is then the teacher's.
struct DivergenceKind {
  Divergence divergence;
  double mix;  // beta or alpha above
};
constexpr DivergenceKind with_roles_exchanged(DivergenceKind kind) {
  switch (kind.divergence) {
    case Divergence::kForwardKl:
      return {Divergence::kReverseKl, kind.mix};
    case Divergence::kReverseKl:
      return {Divergence::kForwardKl, kind.mix};
    case Divergence::kJensenShannon:
      return {Divergence::kJensenShannon, 1.0 - kind.mix};
    case Divergence::kSkewForwardKl:
      return {Divergence::kSkewReverseKl, kind.mix};
    case Divergence::kSkewReverseKl:
      return {Divergence::kSkewForwardKl, kind.mix};
    default:
      return kind;
  }
}

// A skew divergence whose mixture is the other distribution alone is the plain one. Its own formula would divide by the
// quotient of the two, which rounds to 0 where the other gives an id no mass.
constexpr DivergenceKind without_empty_share(DivergenceKind kind) {
  if (kind.mix == 0.0 && kind.divergence == Divergence::kSkewForwardKl) return {Divergence::kForwardKl, kind.mix};
  if (kind.mix == 0.0 && kind.divergence == Divergence::kSkewReverseKl) return {Divergence::kReverseKl, kind.mix};
  return kind;
}
inline constexpr double kLeastSkew = 1e-4;  // of less than this, float32's rounding of 1 - mix is a part that counts
constexpr bool is_skew_share(double mix) { return mix == 0.0 || (mix >= kLeastSkew && mix < 1.0); }

template <Divergence Kind>
struct DivergenceTag {
  static constexpr Divergence kKind = Kind;
};

// Calls body(tag), decltype(tag)::kKind being the divergence.
template <class Body>
LIMBECK_INLINE auto with_divergence(Divergence divergence, const Body& body) {
  switch (divergence) {
    case Divergence::kForwardKl:
      return body(DivergenceTag<Divergence::kForwardKl>{});
    case Divergence::kReverseKl:
      return body(DivergenceTag<Divergence::kReverseKl>{});
    case Divergence::kJensenShannon:
      return body(DivergenceTag<Divergence::kJensenShannon>{});
    case Divergence::kSkewForwardKl:
      return body(DivergenceTag<Divergence::kSkewForwardKl>{});
    case Divergence::kSkewReverseKl:
      return body(DivergenceTag<Divergence::kSkewReverseKl>{});
    case Divergence::kTotalVariation:
      return body(DivergenceTag<Divergence::kTotalVariation>{});
    case Divergence::kLogitMse:
      return body(DivergenceTag<Divergence::kLogitMse>{});
    default:
      return body(DivergenceTag<Divergence::kNone>{});
  }
}

}  // namespace limbeck::kernels
