// Terms that compare hidden states: feature (the last one), hidden.S (mapped layers), mixer.S (what token
// mixers give), contrastive and embedding (pooled states). The student's states are projected into the teacher's width;
// distances are float32.
#pragma once
#include <memory>

#include "trainer/objective/forward_pass.h"
#include "trainer/objective/measures.h"
#include "trainer/objective/options.h"
#include "trainer/objective/projectors.h"

namespace limbeck::objective {

// Null where the weights ask for none of these terms.
std::unique_ptr<TermGroup> state_terms(const ObjectiveOptions& options, const ModelPair& pair, Projectors& projectors);
std::unique_ptr<TermGroup> pooled_terms(const ObjectiveOptions& options, const ModelPair& pair, Projectors& projectors);

// Cosine of the two models' pooled states where they are of one width, added up over the sequences.
void measure_pooled(const ForwardPass& pass, bool first_token, Measures& measures);

// Cosine of each row pair of two wide matrices [n, D] -> [n].
at::Tensor cosine_rows(const at::Tensor& a, const at::Tensor& b);
// One vector a sequence in the wide dtype, padding left out: the mean of its tokens, or its first token.
at::Tensor pooled_states(const at::Tensor& last_btd, const data::TokenStream& stream, bool first_token,
                         at::ScalarType wide, const std::string& place);
// InfoNCE of matching rows among all rows, [n]: 0 for a single row, which has nothing to be told apart from.
at::Tensor info_nce(const at::Tensor& student_nd, const at::Tensor& teacher_nd, double temperature);

}  // namespace limbeck::objective
