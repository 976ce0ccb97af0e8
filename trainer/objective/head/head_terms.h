// Cross-entropy and divergence of language-model heads from hidden states and head weights, never an N x V tensor.
// The one door to them: what the fused kernel knows goes through it, the rest through row chunks of float32 logits.
// Both make their gradients in the forward, so that training and evaluation compute the same bits.
#pragma once
#include <optional>
#include <string>

#include "kernels/operator/wide_type.h"
#include "trainer/objective/head/divergence.h"

namespace limbeck::objective {

struct HeadSide {
  at::Tensor hidden_nd;    // [N, D]
  at::Tensor weight_vd;    // [V, D] of the same dtype
  double softcap = 0.0;    // z = cap tanh(z / cap); 0: none
  int64_t vocabulary = 0;  // real ids: rows of the weight from here on have no mass; 0: all are real
  std::string place;       // of its casts: "objective.kd (teacher head)"
};

struct HeadRequest {
  HeadSide student;
  std::optional<HeadSide> teacher = std::nullopt;
  const Divergence* divergence = nullptr;  // null: cross-entropy alone
  bool teacher_learns = false;             // the divergence is differentiated in the teacher's hidden states too
  at::Tensor labels_n = {};                // int64 [N], -100 = none; undefined: no cross-entropy
  at::Tensor divergence_weight_n = {}, ce_weight_n = {};  // [N], float32 (float64 for float64 models)
  double temperature = 1.0, clamp = 0.0, label_smoothing = 0.0;
  double gradient_scale = 1.0;  // what backward will be seeded with
};

kernels::HeadLoss head_terms(const HeadRequest& request);

// The same by row chunks, whatever the divergence: head_terms' other body, and the tests' second opinion.
kernels::HeadLoss chunked_head_terms(const HeadRequest& request);

// What evaluation reports of two heads of one vocabulary, summed over the rows of `compared_n` (bool [N]);
// temperature 1.
struct HeadComparison {
  double kl = 0.0;
  int64_t top1_agreements = 0;
  double top5_overlap = 0.0;  // shared ids among the five likeliest of each, as a share of five
};
HeadComparison compare_heads(const HeadSide& student, const HeadSide& teacher, const at::Tensor& compared_n);
// Rows where the side's likeliest id is the label; bool [N], false where `wanted_n` is not set.
at::Tensor right_predictions(const HeadSide& side, const at::Tensor& labels_n, const at::Tensor& wanted_n);

using kernels::wide_type;  // of logits and losses

}  // namespace limbeck::objective
