// The flat signature of the operators of head_loss_operands.h, for who registers a body of head_loss_forward.
#pragma once
#include "kernels/head_loss/head_loss_operands.h"

#define LIMBECK_HEAD_LOSS_PARAMETERS                                                                            \
  const at::Tensor &student_hidden, const at::Tensor &student_weight, const OptionalTensor &teacher_hidden,     \
      const OptionalTensor &teacher_weight, const OptionalTensor &labels, const at::Tensor &divergence_weight,  \
      const at::Tensor &ce_weight, c10::string_view divergence, double mix, double temperature,                 \
      double student_softcap, double teacher_softcap, double student_scale, double teacher_scale, double clamp, \
      double label_smoothing, int64_t vocabulary, double gradient_scale
#define LIMBECK_HEAD_LOSS_ARGUMENTS                                                                                 \
  student_hidden, student_weight, teacher_hidden, teacher_weight, labels, divergence_weight, ce_weight, divergence, \
      mix, temperature, student_softcap, teacher_softcap, student_scale, teacher_scale, clamp, label_smoothing,     \
      vocabulary, gradient_scale

namespace limbeck::kernels {

inline HeadLossInputs inputs_of(LIMBECK_HEAD_LOSS_PARAMETERS) {
  (void)divergence, (void)mix, (void)temperature, (void)student_softcap, (void)teacher_softcap, (void)student_scale;
  (void)teacher_scale, (void)clamp, (void)label_smoothing, (void)vocabulary, (void)gradient_scale;
  return {student_hidden, student_weight, teacher_hidden, teacher_weight, labels, divergence_weight, ce_weight};
}
inline HeadLossOptions options_of(LIMBECK_HEAD_LOSS_PARAMETERS) {
  (void)student_hidden, (void)student_weight, (void)teacher_hidden, (void)teacher_weight, (void)labels;
  (void)divergence_weight, (void)ce_weight;
  return {.divergence = divergence_named(divergence),
          .mix = mix,
          .temperature = temperature,
          .student_softcap = student_softcap,
          .teacher_softcap = teacher_softcap,
          .student_scale = student_scale,
          .teacher_scale = teacher_scale,
          .clamp = clamp,
          .label_smoothing = label_smoothing,
          .vocabulary = vocabulary,
          .gradient_scale = gradient_scale};
}

template <auto Body>
HeadLossResults flat(LIMBECK_HEAD_LOSS_PARAMETERS, bool hidden_gradient, bool weight_gradient) {
  return Body(inputs_of(LIMBECK_HEAD_LOSS_ARGUMENTS), options_of(LIMBECK_HEAD_LOSS_ARGUMENTS), hidden_gradient,
              weight_gradient);
}

}  // namespace limbeck::kernels
