// The divergences that the head knows, without torch's headers.
#pragma once
#include <cstdint>

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

}  // namespace limbeck::kernels
