// Maps a teacher's hidden states into the student's width, so that the student's own head can read them:
// projected teacher logits = P(H_t) E_s^T. Built from the two models that it joins: its dtype and device are the
// teacher's (or float32 by request), its output is cast once, by name, to what the student's head accepts.
#pragma once
#include <memory>

#include "modules/models/network/transformer.h"

namespace limbeck::projectors {

class LogitProjector : public torch::nn::Module {
 public:
  // scope: path "projector.logit", policy with the projector's dtype and the teacher's device.
  LogitProjector(const precision::Scope& scope, const models::Transformer& teacher, const models::Transformer& student,
                 const precision::PrecisionPolicy& teacher_policy, const precision::PrecisionPolicy& student_policy);

  // hidden_btd: the teacher's last hidden state [B, T, d_t] -> the student's width [B, T, d_s] in the student's dtype.
  at::Tensor forward(const at::Tensor& hidden_btd) const;

 private:
  std::string path_;
  at::ScalarType teacher_dtype_, projector_dtype_, student_dtype_;
  c10::Device student_device_;
  std::shared_ptr<models::Linear> projection_;
};

}  // namespace limbeck::projectors
