#include "modules/projectors/attention_projector.h"

#include "modules/precision/casts.h"

namespace limbeck::projectors {

AttentionProjector::AttentionProjector(const precision::Scope& scope, int64_t student_heads, int64_t teacher_heads)
    : ContractModule(scope, precision::Role::kProjector), student_heads_(student_heads), teacher_heads_(teacher_heads) {
  create_parameter("weight", {teacher_heads_, student_heads_});
  create_parameter("log_temperature", {1});
}

at::Tensor AttentionProjector::forward(const at::Tensor& scores_bhts) const {
  const precision::ModuleScope scope(path());
  const at::ScalarType wide = scores_bhts.scalar_type(), own = precision().storage;
  const at::Tensor heads = precision::cast(parameter("weight"), own, wide, path() + " (head map)");
  const at::Tensor log_t = precision::cast(parameter("log_temperature"), own, wide, path() + " (temperature)");
  // [Ht, Hs] x [B, Hs, T S]: one product over the heads.
  const at::Tensor mixed = at::matmul(heads, scores_bhts.flatten(2)).unflatten(-1, scores_bhts.sizes().slice(2));
  return mixed * at::exp(-log_t);
}

void AttentionProjector::reset_parameters() {
  at::NoGradGuard no_gradient;
  at::Tensor heads = at::zeros({teacher_heads_, student_heads_}, at::kFloat);
  for (int64_t i = 0; i < teacher_heads_; ++i) heads[i][i * student_heads_ / teacher_heads_] = 1.0;
  at::Tensor weight = parameter("weight"), log_temperature = parameter("log_temperature");
  precision::cast_into(weight, heads);
  log_temperature.zero_();
}

}  // namespace limbeck::projectors
