// DSKD: the teacher's states brought into the student's space (t2s) and the student's into the teacher's (s2t), so that
// each pair of distributions comes out of one head. Token by token for one tokenizer, by cross-model attention for two.
#pragma once
#include <memory>

#include "trainer/objective/forward_pass.h"
#include "trainer/objective/hidden_terms.h"

namespace limbeck::objective {

struct DualStates {
  at::Tensor teacher_in_student;  // [B, Ts, d_s] in the student's dtype; differentiable in the projectors
  at::Tensor student_in_teacher;  // [B, Tt, d_t] in the teacher's dtype; differentiable in projectors and student
};

class DualSpace {
 public:
  DualSpace(const ModelPair& pair, Projectors& projectors);
  DualStates forward(const ForwardPass& pass) const;

 private:
  DualStates attended(const ForwardPass& pass) const;

  const ModelPair& pair_;
  at::ScalarType wide_;
  std::shared_ptr<projectors::HiddenProjector> to_student_, to_teacher_, query_;
};

}  // namespace limbeck::objective
