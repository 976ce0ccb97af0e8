// The divergences as a textbook has them, for tests: from logits, differentiable, without a thought for rounding.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "trainer/objective/head/divergence.h"

namespace limbeck::test {

// [n]; jsd with share 0.5, the skewed ones with 0.1, topk_union with `top_k`.
at::Tensor textbook_divergence(const std::string& name, const at::Tensor& zs, const at::Tensor& zt, int64_t top_k = 8);

// The registered one of that name, with what the recipe says.
objective::Divergence divergence_named(const std::string& name, const std::string& recipe = "");

}  // namespace limbeck::test
