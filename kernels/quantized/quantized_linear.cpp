#include "kernels/quantized/quantized_linear.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/planned_device.h"
#include "kernels/quantized/quantized_operands.h"
#include "kernels/quantized/quantized_plan.h"
#include "kernels/quantized/saved_matrix.h"

namespace limbeck::kernels {
namespace {

void check_activations(const char* op, const char* name, const at::Tensor& x, int64_t width,
                       const QuantizedMatrix& weight) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, "[", op, "] ", name, " is ",
              described(x), ", wanted float32, bfloat16 or float16 beside a quantized weight");
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == width, "[", op, "] ", name, " is ", described(x), ", wanted [..., ", width,
              "] for a weight [", weight.rows, ", ", weight.columns, "]");
  TORCH_CHECK(x.device() == weight.parts[0].device(), "[", op, "] the weight is on ", weight.parts[0].device(),
              ", wanted ", x.device(), " as ", name, " (", described(x), ")");
}

at::Tensor like_with_width(const at::Tensor& x, int64_t width) {
  auto sizes = x.sym_sizes().vec();
  sizes.back() = width;
  return at::empty_symint(sizes, x.options());
}

int64_t rows_of(const at::Tensor& x) { return c10::multiply_integers(x.sizes().slice(0, x.sizes().size() - 1)); }

// Of the copy without gaps that a product wants.
int64_t copy_bytes(const at::Tensor& x) { return x.is_contiguous() ? 0 : static_cast<int64_t>(x.nbytes()); }

at::Tensor quantized_outputs(const at::Tensor& x, at::TensorList parts, c10::string_view format, int64_t rows,
                             int64_t columns, const OptionalBias& bias) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear", parts, format, rows, columns);
  check_quantized_linear(x, weight, bias);
  const at::Tensor y = like_with_width(x, rows);
  if (planned_device() == at::kCUDA) {
    const int64_t count = rows_of(x),
                  gap = bias && (count <= kFewRows || weight.format.dynamic) ? copy_bytes(*bias) : 0;
    hold_for_a_moment(
        x, copy_bytes(x) + gap + cuda_product_scratch(weight.format, count, rows, columns, x.element_size()));
  } else if (weight.format.dynamic) {
    hold_for_a_moment(x, copy_bytes(x) + row_codes_bytes(weight.format, rows_of(x), columns));
  }
  return y;
}

at::Tensor quantized_gradients(const at::Tensor& dy, at::TensorList parts, c10::string_view format, int64_t rows,
                               int64_t columns) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear_backward", parts, format, rows, columns);
  check_quantized_backward(dy, weight);
  const at::Tensor dx = like_with_width(dy, columns);
  if (planned_device() == at::kCUDA) {
    hold_for_a_moment(dy, copy_bytes(dy) + cuda_gradient_scratch(rows_of(dy), rows, columns, dy.element_size()));
  }
  return dx;
}

at::Tensor call_linear(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias) {
  static const auto op = typed_operator<decltype(quantized_outputs)>("limbeck::quantized_linear");
  return op.call(x, weight.parts, format_name(weight.format), weight.rows, weight.columns, bias);
}

class QuantizedLinear : public torch::autograd::Function<QuantizedLinear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const OptionalBias& bias,
                            const QuantizedMatrix& weight) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward(weight.parts);
    keep_matrix(*ctx, weight);
    ctx->saved_data["has_bias"] = bias.has_value();  // without one, autograd knows of one input
    return call_linear(x, weight, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const QuantizedMatrix weight = kept_matrix(*ctx, ctx->get_saved_variables());
    at::Tensor dx, dbias;
    if (ctx->needs_input_grad(0)) dx = quantized_linear_backward(grads[0], weight);
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(1))
      dbias = grads[0].reshape({-1, weight.rows}).sum(0);
    return {dx, dbias, {}};
  }
};

at::Tensor quantized_autograd(const at::Tensor& x, at::TensorList parts, c10::string_view format, int64_t rows,
                              int64_t columns, const OptionalBias& bias) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear", parts, format, rows, columns);
  check_quantized_linear(x, weight, bias);
  return QuantizedLinear::apply(x, bias, weight);
}

}  // namespace

void check_quantized_linear(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias) {
  check_activations("quantized_linear", "x", x, weight.columns, weight);
  TORCH_CHECK(weight.format != QuantizedFormat::kInt8Dynamic || weight.columns <= kMostInt8Columns,
              "[quantized_linear] a weight [", weight.rows, ", ", weight.columns, "] in int8-dynamic, wanted at most ",
              kMostInt8Columns, " columns, whose products int32 can hold: take int8");
  if (!bias) return;
  check_matches("quantized_linear", "bias", *bias, "x", x);
  TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.rows, "[quantized_linear] bias is ", described(*bias),
              ", wanted [", weight.rows, "]");
}

void check_quantized_backward(const at::Tensor& dy, const QuantizedMatrix& weight) {
  check_activations("quantized_linear_backward", "dy", dy, weight.rows, weight);
}

at::Tensor quantized_linear(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias) {
  return call_linear(x, weight, bias);
}

at::Tensor quantized_linear_backward(const at::Tensor& dy, const QuantizedMatrix& weight) {
  static const auto op = typed_operator<decltype(quantized_gradients)>("limbeck::quantized_linear_backward");
  return op.call(dy, weight.parts, format_name(weight.format), weight.rows, weight.columns);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("quantized_linear(Tensor x, Tensor[] parts, str format, int rows, int columns, Tensor? bias=None) -> Tensor");
  m.def("quantized_linear_backward(Tensor dy, Tensor[] parts, str format, int rows, int columns) -> Tensor");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("quantized_linear", &quantized_outputs);
  m.impl("quantized_linear_backward", &quantized_gradients);
}
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("quantized_linear", &quantized_autograd);
  m.impl("quantized_linear_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace limbeck::kernels
