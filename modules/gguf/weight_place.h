// Where a parameter of ours lies in a GGUF file, once for who writes files and who reads them.
#pragma once
#include <string>
#include <vector>

#include "modules/gguf/llama_cpp_model.h"
#include "modules/models/weights/load_model.h"

namespace limbeck::gguf {

struct WeightPlace {
  std::string module;  // its path below the model's root; of experts without their number
  std::string tensor;
  std::vector<int64_t> shape;  // of the tensor: of experts all together
  bool with_one = false;       // a norm that is stored as 1 + weight
};

// UsageError where llama.cpp has no name for it.
WeightPlace place_of(const models::BuiltModel& built, const LlamaCppModel& words, const models::WeightBinding& binding);
// The part of the parameter that the tensor holds: of experts all together. Undefined where it is packed.
at::Tensor part_in_file(const models::WeightBinding& binding);

}  // namespace limbeck::gguf
