// Terms of sequence classifiers: kd between the class distributions and ce on the gold classes, means over sequences.
#pragma once
#include <memory>

#include "trainer/objective/language_terms.h"

namespace limbeck::objective {

std::unique_ptr<HeadTermGroup> class_terms(const ObjectiveOptions& options, const ModelPair& pair);

}  // namespace limbeck::objective
