#include "kernels/quantized/straight_through.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/grouped_linear/grouped_linear.h"
#include "kernels/grouped_linear/grouped_linear_operators.h"
#include "kernels/linear/linear.h"
#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/passed_through.h"
#include "kernels/operator/planned_device.h"
#include "kernels/quantized/grouped_quantized_linear.h"
#include "kernels/quantized/quantized_linear.h"
#include "kernels/quantized/quantized_operands.h"
#include "kernels/quantized/quantized_rows.h"
#include "kernels/quantized/saved_matrix.h"

namespace limbeck::kernels {
namespace {

QuantizedMatrix fresh_codes(const char* op, const at::Tensor& weight, c10::string_view format, at::ScalarType scales) {
  TORCH_CHECK(weight.is_cpu() || weight.is_meta(), "[", op, "] weight is ", described(weight),
              ", wanted one on the CPU: codes are made there alone");
  // What codes are made from is float32.
  if (weight.scalar_type() != at::kFloat)
    hold_for_a_moment(weight, weight.numel() * static_cast<int64_t>(sizeof(float)));
  return quantize(weight.detach(), format_named(format), scales);
}

void check_seen_weight(const at::Tensor& x, const at::Tensor& weight) {
  check_matches("straight_through_linear", "weight", weight, "x", x);
}

at::Tensor seen_values(const at::Tensor& weight, c10::string_view format, at::ScalarType scales) {
  return all_rows(fresh_codes("seen_through_format", weight, format, scales), weight.scalar_type());
}

at::Tensor straight_through_values(const at::Tensor& x, const at::Tensor& weight, c10::string_view format,
                                   const OptionalBias& bias, at::ScalarType scales) {
  check_seen_weight(x, weight);
  return quantized_linear(x, fresh_codes("straight_through_linear", weight, format, scales), bias);
}

QuantizedStack fresh_stack(const at::Tensor& weight, c10::string_view format, at::ScalarType scales) {
  QuantizedStack stack{format_named(format), weight.size(0), weight.size(1), weight.size(2), {}};
  for (const QuantizedPart& part : parts_of_stack(stack.format, stack.count, stack.rows, stack.columns, scales))
    stack.parts.push_back(at::empty(part.shape, weight.options().dtype(part.dtype).requires_grad(false)));
  for (int64_t i = 0; i < stack.count; ++i) {
    const QuantizedMatrix one = fresh_codes("straight_through_grouped", weight.select(0, i), format, scales);
    for (size_t part = 0; part < stack.parts.size(); ++part) stack.parts[part].select(0, i).copy_(one.parts[part]);
  }
  return stack;
}

at::Tensor straight_through_groups(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends,
                                   c10::string_view format, at::ScalarType scales) {
  check_grouped_linear(rows, weight, ends);
  return grouped_quantized_linear(rows, fresh_stack(weight, format, scales), ends);
}

class StraightThroughLinear : public torch::autograd::Function<StraightThroughLinear> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const OptionalBias& bias, const std::string& format, at::ScalarType scales) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const QuantizedMatrix codes = fresh_codes("straight_through_linear", weight, format, scales);
    std::vector<at::Tensor> kept = codes.parts;
    kept.push_back(x);
    ctx->save_for_backward(kept);
    keep_matrix(*ctx, codes);
    ctx->saved_data["has_bias"] = bias.has_value();  // without one, autograd knows of two inputs
    return quantized_linear(x, codes, bias);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    auto kept = ctx->get_saved_variables();
    const at::Tensor x = kept.back();
    kept.pop_back();
    const QuantizedMatrix codes = kept_matrix(*ctx, std::move(kept));
    const at::Tensor dy = grads[0].reshape({-1, codes.rows});
    at::Tensor dx, dweight, dbias;
    if (ctx->needs_input_grad(0)) dx = quantized_linear_backward(grads[0], codes);
    if (ctx->needs_input_grad(1)) dweight = kernels::linear(dy.t(), x.reshape({-1, codes.columns}).t());
    if (ctx->saved_data["has_bias"].toBool() && ctx->needs_input_grad(2)) dbias = dy.sum(0);
    return {dx, dweight, dbias, {}, {}};
  }
};

class StraightThroughGrouped : public torch::autograd::Function<StraightThroughGrouped> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& rows, const at::Tensor& weight,
                            const at::Tensor& ends, const std::string& format, at::ScalarType scales) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const QuantizedStack codes = fresh_stack(weight, format, scales);
    std::vector<at::Tensor> kept = codes.parts;
    kept.push_back(rows);
    kept.push_back(ends);
    ctx->save_for_backward(kept);
    keep_matrix(*ctx, {codes.format, codes.rows, codes.columns, {}});
    return grouped_quantized_linear(rows, codes, ends);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    auto kept = ctx->get_saved_variables();
    const at::Tensor ends = kept.back(), rows = kept[kept.size() - 2];
    kept.resize(kept.size() - 2);
    QuantizedMatrix each = kept_matrix(*ctx, std::move(kept));
    const QuantizedStack codes{each.format, ends.size(0), each.rows, each.columns, std::move(each.parts)};
    at::Tensor of_rows, of_weight;
    if (ctx->needs_input_grad(0)) of_rows = grouped_quantized_backward(grads[0], codes, ends);
    if (ctx->needs_input_grad(1)) of_weight = grouped_outer(grads[0], rows, ends);
    return {of_rows, of_weight, {}, {}, {}};
  }
};

at::Tensor seen_autograd(const at::Tensor& weight, c10::string_view format, at::ScalarType scales) {
  return PassedThrough::apply(weight, [&](const at::Tensor& w) { return seen_values(w, format, scales); });
}

at::Tensor straight_through_autograd(const at::Tensor& x, const at::Tensor& weight, c10::string_view format,
                                     const OptionalBias& bias, at::ScalarType scales) {
  check_seen_weight(x, weight);
  return StraightThroughLinear::apply(x, weight, bias, std::string(format), scales);
}

at::Tensor groups_autograd(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends,
                           c10::string_view format, at::ScalarType scales) {
  check_grouped_linear(rows, weight, ends);
  return StraightThroughGrouped::apply(rows, weight, ends, std::string(format), scales);
}

}  // namespace

at::Tensor seen_through_format(const at::Tensor& weight, QuantizedFormat format, at::ScalarType scales) {
  static const auto op = typed_operator<decltype(seen_values)>("limbeck::seen_through_format");
  return op.call(weight, format_name(format), scales);
}

at::Tensor straight_through_linear(const at::Tensor& x, const at::Tensor& weight, QuantizedFormat format,
                                   const OptionalBias& bias, at::ScalarType scales) {
  static const auto op = typed_operator<decltype(straight_through_values)>("limbeck::straight_through_linear");
  return op.call(x, weight, format_name(format), bias, scales);
}

at::Tensor straight_through_grouped(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends,
                                    QuantizedFormat format, at::ScalarType scales) {
  static const auto op = typed_operator<decltype(straight_through_groups)>("limbeck::straight_through_grouped");
  return op.call(rows, weight, ends, format_name(format), scales);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("seen_through_format(Tensor weight, str format, ScalarType scales=float32) -> Tensor");
  m.def(
      "straight_through_linear(Tensor x, Tensor weight, str format, Tensor? bias=None, ScalarType scales=float32) -> "
      "Tensor");
  m.def(
      "straight_through_grouped(Tensor rows, Tensor weight, Tensor ends, str format, ScalarType scales=float32) -> "
      "Tensor");
}
// Made of operators that have their own bodies on each device, meta too.
TORCH_LIBRARY_IMPL(limbeck, CompositeExplicitAutograd, m) {
  m.impl("seen_through_format", &seen_values);
  m.impl("straight_through_linear", &straight_through_values);
  m.impl("straight_through_grouped", &straight_through_groups);
}
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("seen_through_format", &seen_autograd);
  m.impl("straight_through_linear", &straight_through_autograd);
  m.impl("straight_through_grouped", &groups_autograd);
}

}  // namespace limbeck::kernels
