#include "kernels/linear/linear.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/linear/half_gemm_cpu.h"

namespace limbeck::kernels {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

void check_same(const char* name, const at::Tensor& t, const at::Tensor& x) {
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), "[linear] ", name, " is ", t.scalar_type(), ", wanted ",
              x.scalar_type(), " (the dtype of x)");
  TORCH_CHECK(t.device() == x.device(), "[linear] ", name, " is on ", t.device(), ", wanted ", x.device(),
              " (the device of x)");
}

void check(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
              "[linear] x is ", dtype, ", wanted float32, float64, bfloat16 or float16");
  check_same("weight", weight, x);
  TORCH_CHECK(weight.dim() == 2, "[linear] weight is ", weight.sizes(), ", wanted [out, in]");
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == weight.size(1), "[linear] x is ", x.sizes(), ", wanted [..., ",
              weight.size(1), "] for a weight of ", weight.sizes());
  if (bias) {
    check_same("bias", *bias, x);
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "[linear] bias is ", bias->sizes(), ", wanted [",
                weight.size(0), "]");
  }
}

at::Tensor linear_meta(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  check(x, weight, bias);
  auto sizes = x.sym_sizes().vec();
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

// cuBLAS may add partial sums of a split product in the storage dtype unless told otherwise; we promise float32.
void require_wide_reduction() {
  using Reduction = at::CuBLASReductionOption;
  auto& context = at::globalContext();
  if (context.allowFP16ReductionCuBLAS() == Reduction::AllowReducedPrecisionWithSplitK) {
    context.setAllowFP16ReductionCuBLAS(/*allow_reduced_precision=*/false);
  }
  if (context.allowBF16ReductionCuBLAS() == Reduction::AllowReducedPrecisionWithSplitK) {
    context.setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false);
  }
}

at::Tensor linear_cuda(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  check(x, weight, bias);
  require_wide_reduction();
  return at::linear(x, weight, bias);
}

// Forward and backward of the float16 path are the same product with other operands; a transposed view is read in
// place.
class HalfLinear : public torch::autograd::Function<HalfLinear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const OptionalTensor& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, weight});
    ctx->saved_data["has_bias"] = bias.has_value();  // without one, autograd knows of two inputs
    return kernels::linear(x, weight, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto &x = saved[0], &weight = saved[1];
    const auto dy = grads[0].reshape({-1, weight.size(0)});
    at::Tensor dx, dweight, dbias;
    if (ctx->needs_input_grad(0)) dx = kernels::linear(dy, weight.t()).reshape(x.sizes());
    if (ctx->needs_input_grad(1)) dweight = kernels::linear(dy.t(), x.reshape({-1, weight.size(1)}).t());
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)) dbias = dy.sum(0);
    return {dx, dweight, dbias};
  }
};

at::Tensor linear_autograd(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  check(x, weight, bias);
  if (x.is_cuda()) require_wide_reduction();
  const bool own = x.is_cpu() && x.scalar_type() == at::kHalf && half_gemm_path() == HalfGemmPath::kWiden;
  return own ? HalfLinear::apply(x, weight, bias) : at::linear(x, weight, bias);
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("limbeck::linear", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const OptionalTensor&)>();
  return op.call(x, weight, bias);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) { m.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor"); }
TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { m.impl("linear", &linear_cuda); }
TORCH_LIBRARY_IMPL(limbeck, Meta, m) { m.impl("linear", &linear_meta); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) { m.impl("linear", &linear_autograd); }

}  // namespace limbeck::kernels
