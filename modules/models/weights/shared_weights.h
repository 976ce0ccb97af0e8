// Two models with one copy of their weights: a frozen base that adapters work on, and itself without them.
#pragma once
#include <string>

#include "modules/models/weights/load_model.h"

namespace limbeck::models {

// Whether every parameter of `borrower`, built on meta, has the shape and dtype of one of `lender` that does not train.
bool can_share_weights(const BuiltModel& borrower, const BuiltModel& lender);
// From here on `borrower` computes with the weights of `lender`, where they live. Adapters stay the lender's own.
void share_weights(BuiltModel& borrower, const BuiltModel& lender);

// Of frozen quantized weights alone. The path of a module whose weight the lender has otherwise, or "".
std::string share_quantized_weights(BuiltModel& borrower, const BuiltModel& lender);

}  // namespace limbeck::models
