// The fused head on the CPU, for float32, bfloat16 and float16, and the shape that its memory plan is made from.
#pragma once
#include "kernels/head_loss/head_loss_operands.h"
#include "kernels/head_loss/head_loss_plan.h"

namespace limbeck::kernels {

HeadFormula head_formula(const HeadLossInputs& in, const HeadLossOptions& options);  // of CUDA as well

HeadShape head_shape(const HeadLossInputs& in, const HeadLossOptions& options, int64_t tokens, bool hidden_gradient,
                     bool weight_gradient);

HeadLossResults head_loss_on_cpu(const HeadLossInputs& in, const HeadLossOptions& options, bool hidden_gradient,
                                 bool weight_gradient);

}  // namespace limbeck::kernels
