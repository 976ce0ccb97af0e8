// objective.vocabulary_parallel: each rank computes the logits of its slice of the vocabulary, for the tokens of all
// ranks, so that no rank ever holds a row of whole logits. Values and gradients are those of head_terms() to rounding.
// Every rank calls it at the same moment with the same options; numbers of tokens may differ.
#pragma once
#include <memory>

#include "trainer/objective/head/head_terms.h"
#include "trainer/parallel/communicator.h"
#include "trainer/recipe/settings.h"

namespace limbeck::objective {

// Who divides the vocabulary; without a line, this process has all of it.
struct VocabularyRanks {
  std::unique_ptr<parallel::Communicator> line;
  parallel::Order order = parallel::Order::kFast;
};

// A line of its own where the recipe divides the vocabulary among several ranks: all of them call it at the same
// moment.
VocabularyRanks vocabulary_ranks(const recipe::Settings& settings, parallel::Communicator& ranks);

// What cannot be divided is a UsageError that says what to set.
void require_divisible_vocabulary(const recipe::Settings& settings, const Divergence& divergence,
                                  bool has_language_head);

// Both heads whole on every rank, of one vocabulary; the rank reads its rows of them. The loss and the values are of
// this rank's tokens. Its backward gives this rank's hidden states their whole gradient, and the head weight that of
// the rank's rows from the tokens of all ranks, and 0 in the other rows: over the ranks they add up to the gradient.
kernels::HeadLoss vocabulary_parallel_terms(const HeadRequest& request, const VocabularyRanks& ranks);

}  // namespace limbeck::objective
