// The routing of mixtures of experts: balance, and expert_mix.S. They read the routers' logits that the forward keeps.
#pragma once
#include "trainer/objective/hidden_terms.h"

namespace limbeck::objective {

// Null where the weights ask for none of these terms.
std::unique_ptr<TermGroup> routing_terms(const ObjectiveOptions& options, const ModelPair& pair,
                                         Projectors& projectors);

// KL(uniform || mean of the rows' softmax), rows weighted; 0-dim.
at::Tensor imbalance(const at::Tensor& logits_ne, const at::Tensor& weight_n);

}  // namespace limbeck::objective
