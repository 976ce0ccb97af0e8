// Makes a student's attention scores comparable with a teacher's: a bias-free map of its heads onto the teacher's, and
// a learned temperature. Both are stored in the student's dtype; the scores are float32.
#pragma once
#include "modules/precision/contract_module.h"

namespace limbeck::projectors {

class AttentionProjector : public precision::ContractModule {
 public:
  AttentionProjector(const precision::Scope& scope, int64_t student_heads, int64_t teacher_heads);

  // scores_bhts float32 (float64 for float64 models) [B, Hs, T, S] -> [B, Ht, T, S], divided by the temperature.
  at::Tensor forward(const at::Tensor& scores_bhts) const;
  // Each teacher head starts from the student head at its place; the temperature starts at 1.
  void reset_parameters();

 private:
  int64_t student_heads_, teacher_heads_;
};

}  // namespace limbeck::projectors
