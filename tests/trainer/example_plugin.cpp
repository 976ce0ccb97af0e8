// A plug-in as a user writes one: a divergence of their own, chosen by objective.divergence = absolute_error. One with
// a family and adapters is in tests/out_of_tree/.
#include <ATen/ATen.h>

#include "trainer/plugin/plugin.h"

LIMBECK_PLUGIN(host) {
  using limbeck::objective::Divergence;
  host.add_objective(
      "absolute_error", "mean absolute difference of the logits", [](const limbeck::objective::DivergenceOptions&) {
        return Divergence{.rows = [](const at::Tensor& student_nv,
                                     const at::Tensor& teacher_nv) { return (student_nv - teacher_nv).abs().mean(-1); },
                          .tempered = false};
      });
}
