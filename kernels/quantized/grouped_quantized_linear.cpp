// Schemas, checks, Meta kernels and the derivative of the grouped products with packed matrices.
#include "kernels/quantized/grouped_quantized_linear.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/grouped_linear/grouped_linear_operators.h"
#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/planned_device.h"
#include "kernels/quantized/grouped_quantized_operands.h"
#include "kernels/quantized/quantized_linear.h"
#include "kernels/quantized/quantized_operands.h"
#include "kernels/quantized/quantized_plan.h"

namespace limbeck::kernels {
namespace {

const char* name_of(StackSide side) {
  return side == StackSide::kForward ? "grouped_quantized_linear" : "grouped_quantized_backward";
}

void check_operand(StackSide side, const at::Tensor& a, const QuantizedStack& weight, const at::Tensor& ends) {
  const char* op = name_of(side);
  const char* name = side == StackSide::kForward ? "rows" : "dy";
  check_rows_and_ends(op, name, a, ends);
  const auto dtype = a.scalar_type();
  TORCH_CHECK(dtype != at::kDouble, "[", op, "] ", name, " is ", described(a),
              ", wanted float32, bfloat16 or float16 beside packed weights");
  const int64_t width = side == StackSide::kForward ? weight.columns : weight.rows;
  TORCH_CHECK(a.size(1) == width, "[", op, "] ", name, " is ", described(a), ", wanted [R, ", width, "] for ",
              weight.count, " weights [", weight.rows, ", ", weight.columns, "]");
  TORCH_CHECK(a.device() == weight.parts[0].device(), "[", op, "] the weights are on ", weight.parts[0].device(),
              ", wanted ", a.device(), " as ", name, " (", described(a), ")");
  TORCH_CHECK(weight.format != QuantizedFormat::kInt8Dynamic || weight.columns <= kMostInt8Columns, "[", op,
              "] weights of ", weight.columns, " columns in int8-dynamic, wanted at most ", kMostInt8Columns,
              ", whose products int32 can hold: take int8");
}

at::Tensor outputs_on_meta(StackSide side, const at::Tensor& a, at::TensorList parts, c10::string_view format,
                           int64_t rows, int64_t columns, const at::Tensor& ends) {
  const QuantizedStack weight = checked_stack(side, a, parts, format, rows, columns, ends);
  at::Tensor result = stack_output(side, a, weight);
  const int64_t copied = a.is_contiguous() ? 0 : static_cast<int64_t>(a.nbytes());
  if (planned_device() == at::kCUDA) {
    hold_for_a_moment(a, copied + weight.count * rows * columns * static_cast<int64_t>(a.element_size()));
  } else if (weight.format.dynamic && side == StackSide::kForward) {
    // Of the largest group, which may have all rows, and its results before they are put in place.
    hold_for_a_moment(
        a, copied + row_codes_bytes(weight.format, a.size(0), columns) + static_cast<int64_t>(result.nbytes()));
  }
  return result;
}

at::Tensor forward_on_meta(const at::Tensor& a, at::TensorList parts, c10::string_view format, int64_t rows,
                           int64_t columns, const at::Tensor& ends) {
  return outputs_on_meta(StackSide::kForward, a, parts, format, rows, columns, ends);
}

at::Tensor backward_on_meta(const at::Tensor& a, at::TensorList parts, c10::string_view format, int64_t rows,
                            int64_t columns, const at::Tensor& ends) {
  return outputs_on_meta(StackSide::kBackward, a, parts, format, rows, columns, ends);
}

at::Tensor call_product(StackSide side, const at::Tensor& a, const QuantizedStack& weight, const at::Tensor& ends) {
  using GroupedProduct = decltype(forward_on_meta);
  static const auto forward = typed_operator<GroupedProduct>("limbeck::grouped_quantized_linear");
  static const auto backward = typed_operator<GroupedProduct>("limbeck::grouped_quantized_backward");
  const auto& op = side == StackSide::kForward ? forward : backward;
  return op.call(a, weight.parts, format_name(weight.format), weight.rows, weight.columns, ends);
}

class GroupedQuantizedLinear : public torch::autograd::Function<GroupedQuantizedLinear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows, const at::Tensor& ends,
                            const QuantizedStack& weight) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::vector<at::Tensor> kept = weight.parts;
    kept.push_back(ends);
    ctx->save_for_backward(kept);
    ctx->saved_data["format"] = std::string(format_name(weight.format));
    ctx->saved_data["rows"] = weight.rows;
    ctx->saved_data["columns"] = weight.columns;
    return call_product(StackSide::kForward, rows, weight, ends);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    if (!ctx->needs_input_grad(0)) return {{}, {}, {}};
    std::vector<at::Tensor> kept = ctx->get_saved_variables();
    const at::Tensor ends = kept.back();
    kept.pop_back();
    const QuantizedStack weight{format_named(ctx->saved_data["format"].toStringView()), ends.size(0),
                                ctx->saved_data["rows"].toInt(), ctx->saved_data["columns"].toInt(), std::move(kept)};
    return {grouped_quantized_backward(gradients[0], weight, ends), {}, {}};
  }
};

at::Tensor product_autograd(const at::Tensor& rows, at::TensorList parts, c10::string_view format, int64_t out,
                            int64_t in, const at::Tensor& ends) {
  const QuantizedStack weight = checked_stack(StackSide::kForward, rows, parts, format, out, in, ends);
  if (at::GradMode::is_enabled() && rows.requires_grad()) return GroupedQuantizedLinear::apply(rows, ends, weight);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return call_product(StackSide::kForward, rows, weight, ends);
}

}  // namespace

QuantizedStack checked_stack(StackSide side, const at::Tensor& a, at::TensorList parts, std::string_view format,
                             int64_t rows, int64_t columns, const at::Tensor& ends) {
  const char* op = name_of(side);
  TORCH_CHECK(ends.defined() && ends.dim() == 1, "[", op, "] ends is ", described(ends), ", wanted int32 [groups]");
  QuantizedStack stack{format_named(format), ends.size(0), rows, columns, parts.vec()};
  check_parts(op, parts, stack.format, stack.count, rows, columns);
  check_operand(side, a, stack, ends);
  return stack;
}

at::Tensor stack_output(StackSide side, const at::Tensor& a, const QuantizedStack& weight) {
  return at::empty({a.size(0), side == StackSide::kForward ? weight.rows : weight.columns}, a.options());
}

at::Tensor grouped_quantized_linear(const at::Tensor& rows, const QuantizedStack& weight, const at::Tensor& ends) {
  return call_product(StackSide::kForward, rows, weight, ends);
}

at::Tensor grouped_quantized_backward(const at::Tensor& dy, const QuantizedStack& weight, const at::Tensor& ends) {
  return call_product(StackSide::kBackward, dy, weight, ends);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def(
      "grouped_quantized_linear(Tensor rows, Tensor[] parts, str format, int out, int columns, Tensor ends) -> Tensor");
  m.def(
      "grouped_quantized_backward(Tensor dy, Tensor[] parts, str format, int out, int columns, Tensor ends) -> Tensor");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("grouped_quantized_linear", &forward_on_meta);
  m.impl("grouped_quantized_backward", &backward_on_meta);
}
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("grouped_quantized_linear", &product_autograd);
  m.impl("grouped_quantized_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace limbeck::kernels
