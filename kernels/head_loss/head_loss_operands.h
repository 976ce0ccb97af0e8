// What the bodies of head_loss (CPU, CUDA, Meta) share: the checks, done once, and the operators
//   limbeck::head_loss          -> loss, divergence_n, cross_entropy_n     with autograd
//   limbeck::head_loss_forward  -> the same, and the gradients asked for, multiplied by gradient_scale (else empty)
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>
#include <tuple>

#include "kernels/head_loss/head_loss.h"

namespace limbeck::kernels {

using OptionalTensor = std::optional<at::Tensor>;

struct HeadLossInputs {
  at::Tensor student_hidden, student_weight;
  OptionalTensor teacher_hidden, teacher_weight, labels;
  at::Tensor divergence_weight, ce_weight;
};

// loss, divergence_n, cross_entropy_n, gradient of the student's hidden states, gradient of its weight
using HeadLossResults = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Refuses what cannot be computed; returns the options with the vocabulary filled in.
HeadLossOptions check_head_loss(const HeadLossInputs& in, const HeadLossOptions& options);

// As Python names them: none, forward_kl, reverse_kl, jensen_shannon, skew_forward_kl, skew_reverse_kl,
// total_variation, logit_mse. An unknown name is refused with all of them.
c10::string_view divergence_name(Divergence divergence);
Divergence divergence_named(c10::string_view name);

// float64 when all heads are, float32 otherwise.
at::ScalarType head_loss_type(const HeadLossInputs& in);

bool any_float64(const HeadLossInputs& in, const HeadLossOptions& options);  // of the heads that are read

// Tokens that count, ascending: one of their weights is not 0. Checks the labels where cross-entropy needs them (CPU).
at::Tensor counted_tokens(const HeadLossInputs& in, const HeadLossOptions& options);

// As counted_tokens refuses them, but where the labels are: the host does not wait, and learns it at its next wait.
void refuse_labels_out_of_range(const HeadLossInputs& in, int64_t vocabulary);

// The loss, summed in float64, in the dtype of head_loss_type.
at::Tensor weighted_loss(const HeadLossInputs& in, const at::Tensor& divergence, const at::Tensor& cross_entropy);

// A composition of ATen operators over runs of tokens: where a head is float64, on the CPU and on CUDA.
HeadLossResults composed_head_loss(const HeadLossInputs& in, const HeadLossOptions& options, bool hidden_gradient,
                                   bool weight_gradient);

}  // namespace limbeck::kernels
