#include "trainer/objective/head/vocabulary_sums.h"

#include <ATen/ops/amax.h>
#include <ATen/ops/sum.h>

namespace limbeck::objective {

at::Tensor VocabularySums::sum(const at::Tensor& x_nv) const { return total(x_nv.sum(-1, /*keepdim=*/true)); }
at::Tensor VocabularySums::highest(const at::Tensor& x_nv) const { return most(x_nv.amax(-1, /*keepdim=*/true)); }

const VocabularySums& all_ids() {
  static const VocabularySums all;
  return all;
}

}  // namespace limbeck::objective
