// A plug-in as a user writes one: a divergence of their own, chosen by objective.divergence = absolute_error.
#include <ATen/ATen.h>

#include "trainer/objective/head/divergence.h"
#include "trainer/plugin.h"

LIMBECK_PLUGIN(host) {
  using limbeck::objective::Divergence;
  using limbeck::objective::DivergenceFactory;
  host.registries.of<DivergenceFactory>("objectives")
      .add("absolute_error", "mean absolute difference of the logits", [](const limbeck::recipe::Settings&) {
        return Divergence{.rows = [](const at::Tensor& student_nv,
                                     const at::Tensor& teacher_nv) { return (student_nv - teacher_nv).abs().mean(-1); },
                          .tempered = false};
      });
}
