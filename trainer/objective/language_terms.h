// Terms of language-model heads: kd, ce, the logit projector's projector_ce, and DSKD's t2s_ce and s2t_kd.
#pragma once
#include <memory>

#include "trainer/objective/head/vocabulary_parallel.h"
#include "trainer/objective/hidden_terms.h"
#include "trainer/objective/measures.h"
#include "trainer/objective/vocabulary.h"

namespace limbeck::objective {

class HeadTermGroup : public TermGroup {
 public:
  // Adds to `measures` what the pass shows; no gradients.
  virtual void measure(const ForwardPass& pass, Measures& measures) const = 0;
};

// `divided` outlives the terms.
std::unique_ptr<HeadTermGroup> language_terms(const ObjectiveOptions& options, const ModelPair& pair,
                                              const Vocabulary& vocabulary, const VocabularyRanks& divided,
                                              Projectors& projectors);

// learns: the model's own head and its adapter get gradients, where they train. draws: of training, for its dropout.
HeadSide head_side(const models::BuiltModel& model, const at::Tensor& last_btd, int64_t vocabulary,
                   const std::string& place, bool learns = true, const models::Draws& draws = {});

}  // namespace limbeck::objective
