// objective.divergence = brier: sum over the ids of (p_student - p_teacher)^2.
#include <ATen/ops/softmax.h>

#include "own_kinds.h"

namespace own {

limbeck::objective::DivergenceFactory brier() {
  return [](const limbeck::objective::DivergenceOptions&) {
    return limbeck::objective::Divergence{.rows = [](const at::Tensor& student_nv, const at::Tensor& teacher_nv) {
      return (student_nv.softmax(-1) - teacher_nv.softmax(-1)).square().sum(-1);
    }};
  };
}

}  // namespace own
