// Two models with one copy of their weights: a frozen base that adapters work on, and itself without them.
#pragma once
#include <string>

#include "modules/models/weights/load_model.h"

namespace limbeck::models {

// Whether every weight of `borrower`, built on meta, has the shape and form of one of `lender` that does not train.
bool can_share_weights(const BuiltModel& borrower, const BuiltModel& lender);
// From here on `borrower` computes with the weights of `lender`, where they live. Adapters stay the lender's own.
void share_weights(BuiltModel& borrower, const BuiltModel& lender);

// Of packed weights alone. The path of the first module whose weights the lender has otherwise, or "".
std::string share_packed_weights(BuiltModel& borrower, const BuiltModel& lender);

}  // namespace limbeck::models
