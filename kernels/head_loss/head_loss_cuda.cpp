#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/head_loss/head_loss_cpu.h"
#include "kernels/head_loss/head_loss_cuda.h"
#include "kernels/head_loss/head_loss_plan.h"
#include "kernels/head_loss/head_loss_signature.h"
#include "kernels/operator/checks.h"
#include "kernels/operator/wide_type.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

// out = a b in float32, whatever the dtype of a and b: cuBLAS gives the sums of half operands away.
void float_product(Tensor out, const Tensor& a, const Tensor& b) {
  if (is_half(a)) {
    at::mm_out(out, a, b, at::kFloat);
  } else {
    at::mm_out(out, a, b);
  }
}

// All tokens run: how many of them count is known on the device alone, and the host does not wait for it.
class CudaHead {
 public:
  CudaHead(const HeadLossInputs& in, const HeadLossOptions& options, bool hidden_gradient, bool weight_gradient);
  HeadLossResults results();

 private:
  void run(int64_t first, int64_t count);
  void add_gradients(int64_t first, int64_t count, HeadTokens args, const Tensor& largest);

  const HeadLossInputs& in_;
  const HeadLossOptions& options_;
  const HeadFormula formula_;
  const CudaHeadPlan plan_;
  bool wants_hidden_, wants_weight_;
  Tensor student_logits_, teacher_logits_, rows_, largest_;
  Tensor student_weight_, teacher_weight_, labels_, divergence_weight_, ce_weight_;
  Tensor divergence_, cross_entropy_, hidden_gradient_, weight_sums_;
};

CudaHead::CudaHead(const HeadLossInputs& in, const HeadLossOptions& options, bool hidden_gradient, bool weight_gradient)
    : in_(in),
      options_(options),
      formula_(head_formula(in, options)),
      plan_(cuda_head_plan(in.student_hidden.size(0), options.vocabulary, formula_.has_divergence())),
      wants_hidden_(hidden_gradient),
      wants_weight_(weight_gradient),
      student_weight_(in.student_weight.narrow(0, 0, options.vocabulary)),
      divergence_weight_(in.divergence_weight.contiguous()),
      ce_weight_(in.ce_weight.contiguous()) {
  const int64_t tokens = in.student_hidden.size(0);
  const auto wide = divergence_weight_.options();
  student_logits_ = at::empty({plan_.run, plan_.stride}, wide);
  if (formula_.has_divergence()) {
    teacher_weight_ = in.teacher_weight->narrow(0, 0, options.vocabulary);
    teacher_logits_ = at::empty({plan_.run, plan_.stride}, wide);
  }
  if (in.labels) labels_ = in.labels->contiguous();
  rows_ = at::empty({plan_.run, sizeof(HeadRow) / sizeof(float)}, wide);
  largest_ = at::empty({plan_.run}, wide);
  divergence_ = at::empty({tokens}, wide);
  cross_entropy_ = at::empty({tokens}, wide);
  hidden_gradient_ = at::empty({hidden_gradient ? tokens : 0, in.student_hidden.size(1)}, in.student_hidden.options());
  weight_sums_ = at::zeros({weight_gradient ? in.student_weight.size(0) : 0, in.student_weight.size(1)}, wide);
}

void CudaHead::run(int64_t first, int64_t count) {
  const auto& o = options_;
  const auto product = [&](const Tensor& logits, const Tensor& hidden, const Tensor& weight) {
    float_product(logits.narrow(0, 0, count).narrow(1, 0, o.vocabulary), hidden.narrow(0, first, count), weight.t());
  };
  product(student_logits_, in_.student_hidden, student_weight_);
  if (formula_.has_divergence()) product(teacher_logits_, *in_.teacher_hidden, teacher_weight_);
  const bool squared = o.divergence == Divergence::kLogitMse;
  const double square = o.temperature * o.temperature, ids = static_cast<double>(o.vocabulary);
  const HeadTokens args{formula_,
                        student_logits_.const_data_ptr<float>(),
                        teacher_logits_.defined() ? teacher_logits_.const_data_ptr<float>() : nullptr,
                        plan_.stride,
                        labels_.defined() ? labels_.const_data_ptr<int64_t>() + first : nullptr,
                        divergence_weight_.const_data_ptr<float>() + first,
                        ce_weight_.const_data_ptr<float>() + first,
                        static_cast<float>(squared ? 1.0 / ids : square),
                        static_cast<float>(o.gradient_scale * (squared ? 2.0 / ids : square)),
                        static_cast<float>(o.gradient_scale),
                        reinterpret_cast<HeadRow*>(rows_.mutable_data_ptr<float>())};
  const Tensor largest = largest_.narrow(0, 0, count);
  launch_head_statistics(args, count, divergence_.mutable_data_ptr<float>() + first,
                         cross_entropy_.mutable_data_ptr<float>() + first, largest.mutable_data_ptr<float>(),
                         c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  if (wants_hidden_ || wants_weight_) add_gradients(first, count, args, largest);
}

void CudaHead::add_gradients(int64_t first, int64_t count, HeadTokens args, const Tensor& largest) {
  const auto storage = in_.student_hidden.scalar_type();
  // Weights of 1 / tokens would send float16's gradients below its least number. bfloat16 has the exponents of float32.
  const bool in_units = storage == at::kHalf;
  Tensor most, unit;
  if (in_units) {
    most = at::amax(largest).clamp_min_(1e-30);
    unit = most / kHalfUnits;
  }
  launch_head_gradients(args, count, storage_of(in_.student_hidden), in_units ? most.const_data_ptr<float>() : nullptr,
                        c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const Tensor logits = is_half(in_.student_hidden) ? student_logits_.view(storage) : student_logits_;
  const Tensor dz = logits.narrow(0, 0, count).narrow(1, 0, options_.vocabulary);
  const Tensor hidden = in_.student_hidden.narrow(0, first, count);
  if (wants_hidden_) {
    auto made = at::empty(hidden.sizes(), weight_sums_.options());
    float_product(made, dz, student_weight_);
    if (in_units) made.mul_(unit);
    hidden_gradient_.narrow(0, first, count).copy_(made);
  }
  if (!wants_weight_) return;
  // Zeros of dz would not make up for a hidden state of padding that is no number.
  const Tensor counted = hidden.masked_fill((largest == 0.0).unsqueeze(1), 0.0);
  Tensor sums = weight_sums_.narrow(0, 0, options_.vocabulary);
  if (in_units) {
    sums.addcmul_(at::mm(dz.t(), counted, at::kFloat), unit);
  } else if (is_half(hidden)) {
    at::addmm_out(sums, sums, dz.t(), counted, at::kFloat, 1.0, 1.0);
  } else {
    sums.addmm_(dz.t(), counted);
  }
}

HeadLossResults CudaHead::results() {
  if (in_.labels) refuse_labels_out_of_range(in_, options_.vocabulary);
  const int64_t tokens = in_.student_hidden.size(0);
  for (int64_t i = 0; i < tokens; i += plan_.run) run(i, std::min(plan_.run, tokens - i));
  return {weighted_loss(in_, divergence_, cross_entropy_), divergence_, cross_entropy_, hidden_gradient_,
          weight_sums_.to(in_.student_weight.scalar_type())};
}

HeadLossResults head_loss_on_cuda(const HeadLossInputs& in, const HeadLossOptions& wanted, bool hidden, bool weight) {
  const auto options = check_head_loss(in, wanted);
  const c10::cuda::CUDAGuard guard(in.student_hidden.device());
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return any_float64(in, options) ? composed_head_loss(in, options, hidden, weight)
                                  : CudaHead(in, options, hidden, weight).results();
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { m.impl("head_loss_forward", &flat<head_loss_on_cuda>); }

}  // namespace
}  // namespace limbeck::kernels
