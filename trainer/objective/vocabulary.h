// How many ids each head's tokenizer has, as the agreement of models and data says (trainer/agreement).
#pragma once
#include <cstdint>

namespace limbeck::objective {

// Real token ids of each head: columns from there on are padding without mass.
struct Vocabulary {
  int64_t student = 0, teacher = 0;
};

}  // namespace limbeck::objective
