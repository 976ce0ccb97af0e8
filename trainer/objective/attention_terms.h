// Attention transfer (attention.S): the terms read the operands that the forward keeps; attention maps exist only while
// such a term is on.
#pragma once
#include "trainer/objective/hidden_terms.h"

namespace limbeck::objective {

// Null where the weights ask for none.
std::unique_ptr<TermGroup> attention_terms(const ObjectiveOptions& options, const ModelPair& pair,
                                           Projectors& projectors);

// Attention scores before the softmax, [B, H, T, T] in the wide dtype, unmasked.
at::Tensor attention_scores(const models::Taps::Operands& operands, const models::Architecture& architecture,
                            at::ScalarType wide, const std::string& place);
// bool [B or 1, 1, T, T]: which keys this layer's queries may see.
at::Tensor visible_keys(const data::TokenStream& stream, const models::Architecture& architecture, int64_t layer);

}  // namespace limbeck::objective
