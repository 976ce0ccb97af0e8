// From hidden states and head weights of a student and a teacher straight to the distillation loss and its gradients.
// The N x V logits never exist: they are made tile by tile, in float32 out of the GEMM, whatever the storage dtypes.
// Gradients are made in the forward (the weights of the tokens are known by then); backward only scales them.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/head_loss/divergence.h"

namespace limbeck::kernels {

struct HeadLossOptions {
  Divergence divergence = Divergence::kForwardKl;
  double mix = 0.5;          // beta or alpha above
  double temperature = 1.0;  // of the divergence, which is multiplied by its square; cross-entropy has none
  double student_softcap = 0.0, teacher_softcap = 0.0;  // z = cap tanh(z / cap), before the temperature; 0: none
  double student_scale = 1.0, teacher_scale = 1.0;      // multiplies the logits before the softcap
  double clamp = 0.0;                                   // logits / T of the divergence clamped to +-clamp; 0: none
  double label_smoothing = 0.0;
  int64_t vocabulary = 0;       // real ids: columns from here on have no mass in either head; 0: the student's rows
  double gradient_scale = 1.0;  // what backward is expected to be seeded with (the loss scale)
};

// loss: 0-dim, sum over tokens of divergence_weight * divergence + ce_weight * cross_entropy, differentiable in student
// hidden and student weight alone. divergence_n, cross_entropy_n: [N], not differentiable; zeros
// where the token's weight is 0 or what they need is absent. All float32 (float64 when both heads are).
struct HeadLoss {
  at::Tensor loss, divergence_n, cross_entropy_n;
};

// student_hidden [N, Ds], student_weight [V, Ds] of one dtype; teacher_hidden [N, Dt], teacher_weight [Vt, Dt] of one
// dtype, which may be another; labels int64 [N], -100 = none; weights float32 [N], a token with both 0 costs nothing.
HeadLoss head_loss(const at::Tensor& student_hidden, const at::Tensor& student_weight,
                   const std::optional<at::Tensor>& teacher_hidden, const std::optional<at::Tensor>& teacher_weight,
                   const std::optional<at::Tensor>& labels, const at::Tensor& divergence_weight_n,
                   const at::Tensor& ce_weight_n, const HeadLossOptions& options);

}  // namespace limbeck::kernels
