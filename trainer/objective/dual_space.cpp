#include "trainer/objective/dual_space.h"

#include <cmath>

#include "modules/precision/casts.h"
#include "trainer/objective/head/row_chunks.h"

namespace limbeck::objective {

namespace {

constexpr double kSmallestDeviation = 1e-6;

using Kind = projectors::HiddenProjector::Kind;

// Each token's vector over its own standard deviation: a token does not depend on the batch it came in.
at::Tensor standardised(const at::Tensor& x) {
  const at::Tensor centred = x - x.mean(-1, /*keepdim=*/true);
  return x / centred.square().mean(-1, /*keepdim=*/true).sqrt().clamp_min(kSmallestDeviation);
}

at::Tensor next_ids(const at::Tensor& ids) {
  const int64_t length = ids.size(1);
  return at::cat({ids.narrow(1, 1, length - 1), ids.narrow(1, length - 1, 1)}, 1);
}

// bool [B, Ts, Tt]: tokens of the same document, no padding.
at::Tensor joined_tokens(const data::TokenStream& student, const data::TokenStream& teacher) {
  const at::Tensor both = valid_tokens(student).unsqueeze(2).bitwise_and(valid_tokens(teacher).unsqueeze(1));
  if (!student.document_ids || !teacher.document_ids) return both;
  return both.bitwise_and(student.document_ids->unsqueeze(2).eq(teacher.document_ids->unsqueeze(1)));
}

}  // namespace

DualSpace::DualSpace(const ModelPair& pair, Projectors& all)
    : pair_(pair), wide_(wide_type(pair.student.policy->stream_dtype())) {
  const int64_t ds = pair.student.model->architecture().hidden, dt = pair.teacher->model->architecture().hidden;
  const at::ScalarType student = pair.student.policy->stream_dtype();
  to_student_ = all.keep(std::make_shared<projectors::HiddenProjector>(
      all.scope("projector.t2s", Projectors::Side::kTeacher), Kind::kLinear, dt, ds, wide_, wide_));
  to_teacher_ = all.from_student("projector.s2t", dt, student, wide_, Kind::kLinear);
  query_ = all.keep(std::make_shared<projectors::HiddenProjector>(
      all.scope("projector.query", Projectors::Side::kStudent), Kind::kLinear, 2 * ds, 2 * dt, student, wide_));
}

DualStates DualSpace::attended(const ForwardPass& pass) const {
  const data::TokenStream &student = pass.batch->student, &teacher = *pass.batch->teacher;
  const auto embedded = [&](const models::BuiltModel& model, const at::Tensor& ids) {
    const at::NoGradGuard no_gradient;  // the tables learn from the models' own losses
    return model.model->embed_tokens(ids);
  };
  const at::Tensor query = query_->forward(
      at::cat({embedded(pair_.student, student.ids), embedded(pair_.student, next_ids(student.ids))}, -1));
  const at::Tensor input = widened(embedded(*pair_.teacher, teacher.ids), wide_, "objective.dskd (teacher embeddings)");
  const at::Tensor target =
      widened(embedded(*pair_.teacher, next_ids(teacher.ids)), wide_, "objective.dskd (teacher embeddings)");
  const at::Tensor key = standardised(at::cat({input, target}, -1));
  const double scale = 1.0 / std::sqrt(static_cast<double>(key.size(-1)));
  const at::Tensor scores = (at::matmul(query, key.transpose(1, 2)) * scale)
                                .masked_fill(joined_tokens(student, teacher).bitwise_not(), kHidden);
  const at::Tensor states = widened(pass.teacher.last, wide_, "objective.dskd (teacher states)");
  const at::Tensor values = to_student_->forward(standardised(states) + standardised(target));
  return {at::matmul(at::softmax(scores, -1), values),
          at::matmul(at::softmax(scores.transpose(1, 2), -1), to_teacher_->forward(pass.student.last))};
}

DualStates DualSpace::forward(const ForwardPass& pass) const {
  DualStates states;
  if (pass.batch->teacher) {
    states = attended(pass);
  } else {
    states = {to_student_->forward(widened(pass.teacher.last, wide_, "objective.dskd (teacher states)")),
              to_teacher_->forward(pass.student.last)};
  }
  return {precision::cast(states.teacher_in_student, wide_, pair_.student.policy->stream_dtype(),
                          "objective.dskd (to the student's head)"),
          precision::cast(states.student_in_teacher, wide_, pair_.teacher->policy->stream_dtype(),
                          "objective.dskd (to the teacher's head)")};
}

}  // namespace limbeck::objective
