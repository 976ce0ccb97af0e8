// Terms of language-model heads: kd, ce, the logit projector's projector_ce, and DSKD's t2s_ce and s2t_kd.
#pragma once
#include <memory>

#include "trainer/objective/head/vocabulary_parallel.h"
#include "trainer/objective/hidden_terms.h"
#include "trainer/objective/measures.h"

namespace limbeck::objective {

// Real token ids of each head: columns from there on are padding without mass.
struct Vocabulary {
  int64_t student = 0, teacher = 0;
};

class HeadTermGroup : public TermGroup {
 public:
  // Adds to `measures` what the pass shows; no gradients.
  virtual void measure(const ForwardPass& pass, Measures& measures) const = 0;
};

// `vocabulary` and `divided` may change until the first pass (accept_data, divide_vocabulary).
std::unique_ptr<HeadTermGroup> language_terms(const recipe::Settings& settings, const Divergence& divergence,
                                              const ModelPair& pair, const Vocabulary& vocabulary,
                                              const VocabularyRanks& divided, Projectors& projectors);

// learns: the model's own head and its adapter get gradients, where they train. draws: of training, for its dropout.
HeadSide head_side(const models::BuiltModel& model, const at::Tensor& last_btd, int64_t vocabulary,
                   const std::string& place, bool learns = true, const models::Draws& draws = {});

}  // namespace limbeck::objective
