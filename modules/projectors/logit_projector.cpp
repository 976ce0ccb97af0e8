#include "modules/projectors/logit_projector.h"

#include "modules/precision/casts.h"

namespace limbeck::projectors {

LogitProjector::LogitProjector(const precision::Scope& scope, const models::Transformer& teacher,
                               const models::Transformer& student, const precision::PrecisionPolicy& teacher_policy,
                               const precision::PrecisionPolicy& student_policy)
    : path_(scope.path),
      teacher_dtype_(teacher_policy.stream_dtype()),
      projector_dtype_(scope.policy->stream_dtype()),
      student_dtype_(student_policy.stream_dtype()),
      student_device_(scope.placement.value_or(student_policy.device())) {
  projection_ = register_module(
      "projection", std::make_shared<models::Linear>(scope, precision::Role::kProjector, teacher.architecture().hidden,
                                                     student.architecture().hidden, /*bias=*/true));
}

at::Tensor LogitProjector::forward(const at::Tensor& hidden_btd) const {
  const at::Tensor x = precision::cast(hidden_btd, teacher_dtype_, projector_dtype_, path_ + " (door)");
  const at::Tensor y = projection_->forward(x);
  return precision::move(precision::cast(y, projector_dtype_, student_dtype_, path_ + " (to the student's head)"),
                         student_device_);
}

}  // namespace limbeck::projectors
