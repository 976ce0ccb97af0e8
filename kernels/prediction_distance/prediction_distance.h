// How far the predictions of one model are from those of another, row by row: of logits over the same ids, by one pass
// over each row of both. For what measures models; there are no gradients.
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

// The logarithm of the sum of exp(logits): [rows, V] in any floating dtype -> float64 [rows].
at::Tensor log_sums(const at::Tensor& logits);

struct PredictionDistances {
  at::Tensor log_sums;  // of `logits`, as above
  at::Tensor kl;        // from `reference`, in nats
  at::Tensor squares;   // the sum of the squared differences of logits
};
// All float64 [rows]. `reference`, in any floating dtype, has the log_sums `of_reference`. Of float32 and shorter the
// logarithms are within 2e-6 and KL within 2e-6 of itself, however near to 0, and 0 of equal logits; where a logit is
// more than 16 further off than the others, and of float64, KL is within the rounding of a difference of logarithms.
PredictionDistances prediction_distances(const at::Tensor& logits, const at::Tensor& reference,
                                         const at::Tensor& of_reference);

}  // namespace limbeck::kernels
