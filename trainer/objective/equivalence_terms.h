// Equivalence pretraining of adapters: the student, a frozen base under an adapter, learns to compute the states of the
// base alone, layer by layer (equivalence), while what the adapter does stays small (regularization).
#pragma once
#include "trainer/objective/hidden_terms.h"

namespace limbeck::objective {

// Null where the weights ask for none. UsageError where the student has no adapter or another structure than its
// teacher.
std::unique_ptr<TermGroup> equivalence_terms(const ObjectiveOptions& options, const ModelPair& pair);

}  // namespace limbeck::objective
