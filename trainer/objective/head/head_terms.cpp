#include "trainer/objective/head/head_terms.h"

#include <ATen/core/grad_mode.h>

#include "modules/precision/casts.h"
#include "trainer/objective/head/chunked_head.h"
#include "trainer/objective/head/row_chunks.h"

namespace limbeck::objective {

kernels::HeadLoss chunked_head_terms(const HeadRequest& request) {
  kernels::HeadLoss result;
  const ChunkedHead head = chunked_head(request, all_ids());
  {
    const at::NoGradGuard no_gradient;
    result.divergence_n = head.divergence_n;
    result.cross_entropy_n = head.cross_entropy_n;
    result.loss = (result.divergence_n * request.divergence_weight_n).sum() +
                  (result.cross_entropy_n * request.ce_weight_n).sum();
  }
  result.loss = loss_with_gradients(result.loss, request, head.student, head.teacher);
  return result;
}

namespace {

// What the fused operator computes: one vocabulary, a teacher that does not learn, a formula it knows.
bool fused_knows(const HeadRequest& request) {
  const auto is_double = [](const HeadSide& side) { return side.hidden_nd.scalar_type() == at::kDouble; };
  if (request.divergence == nullptr || !request.teacher) return true;
  if (is_double(request.student) && !is_double(*request.teacher)) return false;
  return request.divergence->fused.has_value() && !request.teacher_learns &&
         real_rows(request.student) == real_rows(*request.teacher);
}

// The operator computes logits of half-precision heads in the wide dtype, tile by tile, and rounds their gradients
// once.
void name_casts(const HeadRequest& request, bool compares) {
  const HeadSide& student = request.student;
  const at::ScalarType own = student.hidden_nd.scalar_type(), wide = wide_type(own);
  precision::name_inner_cast(student.place + " (logits)", own, wide);
  if (compares) {
    precision::name_inner_cast(request.teacher->place + " (logits)", request.teacher->hidden_nd.scalar_type(), wide);
  }
  if (!at::GradMode::is_enabled()) return;
  if (student.hidden_nd.requires_grad() || student.weight_vd.requires_grad()) {
    precision::name_inner_cast(student.place + " (gradient)", wide, own);
  }
}

kernels::HeadLoss fused_head_terms(const HeadRequest& request) {
  kernels::HeadLossOptions options;
  const bool compares = request.divergence != nullptr && request.teacher.has_value();
  options.divergence = compares ? *request.divergence->fused : kernels::Divergence::kNone;
  if (compares) options.mix = request.divergence->mix;
  options.temperature = request.temperature;
  options.student_softcap = request.student.softcap;
  options.clamp = request.clamp;
  options.label_smoothing = request.label_smoothing;
  options.vocabulary = real_rows(request.student);
  options.gradient_scale = request.gradient_scale;
  std::optional<at::Tensor> teacher_hidden, teacher_weight, labels;
  if (compares) {
    options.teacher_softcap = request.teacher->softcap;
    teacher_hidden = request.teacher->hidden_nd.detach();
    teacher_weight = request.teacher->weight_vd.detach();
  }
  if (request.labels_n.defined()) labels = request.labels_n;
  name_casts(request, compares);
  return kernels::head_loss(request.student.hidden_nd, request.student.weight_vd, teacher_hidden, teacher_weight,
                            labels, request.divergence_weight_n, request.ce_weight_n, options);
}

}  // namespace

kernels::HeadLoss head_terms(const HeadRequest& request) {
  return fused_knows(request) ? fused_head_terms(request) : chunked_head_terms(request);
}

}  // namespace limbeck::objective
