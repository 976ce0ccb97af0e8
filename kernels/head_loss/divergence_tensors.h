// The divergences of divergence_formula.h on tensors of logits: of the CUDA composition, and of the trainer's row
// chunks.
#pragma once
#include <ATen/core/Tensor.h>

#include "kernels/head_loss/divergence.h"

namespace limbeck::kernels {

struct TensorTerms {
  at::Tensor value, slope;  // [n, V], as in DivergenceTerms
};

// Of every id, from d = log(p_s / p_t) and the probabilities. Of kLogitMse d is the difference of the logits, and no
// probabilities are read. Not recorded by autograd where gradients are off.
TensorTerms divergence_terms(DivergenceKind kind, const at::Tensor& d, const at::Tensor& p_s, const at::Tensor& p_t);

}  // namespace limbeck::kernels
