// What DoRA multiplies by: the learned magnitude of each output over the norm that its weights have.
#pragma once
#include "modules/precision/contract_module.h"

namespace limbeck::adapters {

inline constexpr const char* kMagnitude = "lora_magnitude_vector";

// Why it cannot be taken out of merged weights.
inline constexpr const char* kDoraStays =
    "is DoRA, which scaled the weight by norms of W + s B A: the merged weight does not hold them, so that W cannot be "
    "found again";

// [out] in the adapter's output dtype, from its magnitude and wide norms; no gradient goes through the norms.
at::Tensor dora_factor(const precision::ContractModule& adapter, const at::Tensor& norms);
// By how much it exceeds 1, rounded once.
at::Tensor dora_excess(const precision::ContractModule& adapter, const at::Tensor& norms);

}  // namespace limbeck::adapters
