#include "kernels/quantized/int8_dynamic_linear.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/operator/operator_handle.h"
#include "kernels/quantized/int8_dynamic_operands.h"

namespace limbeck::kernels {
namespace {

at::Tensor int8_dynamic_meta(const at::Tensor& x, at::TensorList parts, int64_t rows, int64_t columns,
                             const OptionalBias& bias) {
  checked_int8_dynamic(x, parts, rows, columns, bias);
  auto sizes = x.sym_sizes().vec();
  sizes.back() = rows;
  return at::empty_symint(sizes, x.options());
}

at::Tensor call_int8_dynamic(const at::Tensor& x, at::TensorList parts, int64_t rows, int64_t columns,
                             const OptionalBias& bias) {
  static const auto op = typed_operator<decltype(int8_dynamic_meta)>("limbeck::int8_dynamic_linear");
  return op.call(x, parts, rows, columns, bias);
}

at::Tensor call_int8_gradient(const at::Tensor& dy, at::TensorList parts, int64_t rows, int64_t columns) {
  using GradientSignature = at::Tensor(const at::Tensor&, at::TensorList, c10::string_view, int64_t, int64_t);
  static const auto op = typed_operator<GradientSignature>("limbeck::quantized_linear_backward");
  return op.call(dy, parts, format_name(QuantizedFormat::kInt8), rows, columns);
}

class Int8DynamicLinear : public torch::autograd::Function<Int8DynamicLinear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const OptionalBias& bias,
                            const QuantizedMatrix& weight) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward(weight.parts);
    ctx->saved_data["rows"] = weight.rows;
    ctx->saved_data["columns"] = weight.columns;
    ctx->saved_data["has_bias"] = bias.has_value();  // without one, autograd knows of one input
    return call_int8_dynamic(x, weight.parts, weight.rows, weight.columns, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const int64_t rows = ctx->saved_data["rows"].toInt(), columns = ctx->saved_data["columns"].toInt();
    at::Tensor dx, dbias;
    if (ctx->needs_input_grad(0)) dx = call_int8_gradient(grads[0], ctx->get_saved_variables(), rows, columns);
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(1)) dbias = grads[0].reshape({-1, rows}).sum(0);
    return {dx, dbias, {}};
  }
};

at::Tensor int8_dynamic_autograd(const at::Tensor& x, at::TensorList parts, int64_t rows, int64_t columns,
                                 const OptionalBias& bias) {
  return Int8DynamicLinear::apply(x, bias, checked_int8_dynamic(x, parts, rows, columns, bias));
}

}  // namespace

QuantizedMatrix checked_int8_dynamic(const at::Tensor& x, at::TensorList parts, int64_t rows, int64_t columns,
                                     const OptionalBias& bias) {
  QuantizedMatrix weight = checked_matrix("int8_dynamic_linear", parts, "int8", rows, columns);
  TORCH_CHECK(columns <= kMostInt8Columns, "[int8_dynamic_linear] a weight [", rows, ", ", columns,
              "], wanted at most ", kMostInt8Columns, " columns, whose products int32 can hold: use quantized_linear");
  check_quantized_linear(x, weight, bias);
  return weight;
}

at::Tensor int8_dynamic_linear(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias) {
  TORCH_CHECK(weight.format == QuantizedFormat::kInt8, "[int8_dynamic_linear] the weight is ",
              format_name(weight.format), ", wanted int8: use quantized_linear");
  return call_int8_dynamic(x, weight.parts, weight.rows, weight.columns, bias);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("int8_dynamic_linear(Tensor x, Tensor[] parts, int rows, int columns, Tensor? bias=None) -> Tensor");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) { m.impl("int8_dynamic_linear", &int8_dynamic_meta); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) { m.impl("int8_dynamic_linear", &int8_dynamic_autograd); }

}  // namespace limbeck::kernels
