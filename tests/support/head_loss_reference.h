// Heads and divergence as their definitions say, in float64 and recorded by autograd: what the fused operator must
// give.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/head_loss/head_loss.h"

namespace limbeck::test {

struct HeadCase {
  at::Tensor student_hidden, student_weight, teacher_hidden, teacher_weight;
  std::optional<at::Tensor> labels;
  at::Tensor divergence_weight, ce_weight;
};

struct HeadNumbers {
  at::Tensor loss, divergence, cross_entropy;  // the latter per token
  at::Tensor hidden_gradient, weight_gradient;
};

// `tokens` tokens, `vocabulary` real ids, heads with a few padded rows more (the teacher's more than the student's).
// Logits have a standard deviation of about `size`; the student's differ from the teacher's by about `noise`.
HeadCase head_case(int64_t tokens, int64_t vocabulary, int64_t width, double size, double noise, at::ScalarType student,
                   at::ScalarType teacher);

HeadNumbers reference_head_loss(const HeadCase& c, const kernels::HeadLossOptions& options);

// The operator on the same case; gradients are undefined where `gradients` is false.
HeadNumbers fused_head_loss(const HeadCase& c, const kernels::HeadLossOptions& options, bool gradients = true);

// |a - b| / |b| in the Euclidean norm (|a| where b is 0).
double relative_distance(const at::Tensor& a, const at::Tensor& b);

}  // namespace limbeck::test
