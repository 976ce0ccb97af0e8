#include "kernels/quantized/learned_rounding.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/operator/operator_handle.h"
#include "kernels/quantized/learned_operands.h"

namespace limbeck::kernels {
namespace {

at::Tensor range_meta(const at::Tensor& weight, c10::string_view name) {
  check_rounded_weight("quantized_range", weight);
  const QuantizedFormat format = format_named(name);
  return at::empty({format.has_zeros ? 2 : 1, scale_count(format, weight.size(0), weight.size(1))}, weight.options());
}

std::vector<at::Tensor> quantize_learned_meta(const at::Tensor& weight, const at::Tensor& offset,
                                              const at::Tensor& range, c10::string_view format, at::ScalarType scales) {
  check_learned("quantize_learned", weight, offset, range, format, scales);
  std::vector<at::Tensor> parts;
  for (const QuantizedPart& part : parts_of(format_named(format), weight.size(0), weight.size(1), scales))
    parts.push_back(at::empty(part.shape, weight.options().dtype(part.dtype)));
  return parts;
}

at::Tensor learned_values_meta(const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& range,
                               c10::string_view format, at::ScalarType scales) {
  check_learned("learned_values", weight, offset, range, format, scales);
  return at::empty_like(weight);
}

using Gradients = std::tuple<at::Tensor, at::Tensor>;

Gradients learned_gradients_meta(const at::Tensor& gradient, const at::Tensor& weight, const at::Tensor& offset,
                                 const at::Tensor& range, c10::string_view format, at::ScalarType scales) {
  check_learned("learned_gradients", weight, offset, range, format, scales);
  check_rounded_weight("learned_gradients", gradient);
  return {at::empty_like(offset), at::empty_like(range)};
}

at::Tensor moved_to_codes_meta(const at::Tensor& weight, const at::Tensor& range, at::TensorList parts,
                               c10::string_view format) {
  check_learned("moved_to_codes", weight, weight, range, format, at::kFloat);
  checked_matrix("moved_to_codes", parts, format, weight.size(0), weight.size(1));
  return at::empty_like(weight);
}

class LearnedValues : public torch::autograd::Function<LearnedValues> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& weight, const at::Tensor& offset,
                            const at::Tensor& range, const std::string& format, at::ScalarType scales) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({weight, offset, range});
    ctx->saved_data["format"] = format;
    ctx->saved_data["scales"] = static_cast<int64_t>(scales);
    static const auto op = typed_operator<decltype(learned_values_meta)>("limbeck::learned_values");
    return op.call(weight, offset, range, format, scales);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    static const auto op = typed_operator<decltype(learned_gradients_meta)>("limbeck::learned_gradients");
    const auto kept = ctx->get_saved_variables();
    auto [offset, range] =
        op.call(grads[0].contiguous(), kept[0], kept[1], kept[2], ctx->saved_data["format"].toStringView(),
                static_cast<at::ScalarType>(ctx->saved_data["scales"].toInt()));
    return {at::Tensor(), offset, range, at::Tensor(), at::Tensor()};
  }
};

at::Tensor learned_values_autograd(const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& range,
                                   c10::string_view format, at::ScalarType scales) {
  return LearnedValues::apply(weight, offset, range, std::string(format), scales);
}

}  // namespace

int64_t scale_count(const QuantizedFormat& format, int64_t rows, int64_t columns) {
  const auto shape = parts_of(format, rows, columns)[1].shape;
  return shape.size() == 2 ? shape[0] * shape[1] : shape[0];
}

void check_rounded_weight(const char* op, const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && weight.scalar_type() == at::kFloat && weight.is_contiguous(), "[", op,
              "] weight is ", described(weight), ", wanted float32 [rows, columns], contiguous");
}

void check_learned(const char* op, const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& range,
                   std::string_view name, at::ScalarType scales) {
  check_rounded_weight(op, weight);
  const QuantizedFormat format = format_named(name);
  TORCH_CHECK(scales == at::kFloat || scales == at::kBFloat16 || scales == at::kHalf, "[", op, "] scales in ",
              c10::toString(scales), ", wanted float32, bfloat16 or float16");
  TORCH_CHECK(offset.sizes() == weight.sizes() && offset.scalar_type() == at::kFloat && offset.is_contiguous(), "[", op,
              "] offset is ", described(offset), ", wanted float32 ", weight.sizes(), ", contiguous, as weight");
  const int64_t ends = format.has_zeros ? 2 : 1, count = scale_count(format, weight.size(0), weight.size(1));
  TORCH_CHECK(
      range.sizes() == at::IntArrayRef({ends, count}) && range.scalar_type() == at::kFloat && range.is_contiguous(),
      "[", op, "] range is ", described(range), ", wanted float32 [", ends, ", ", count, "], contiguous, for ", name,
      " ", weight.sizes());
  check_matches(op, "offset", offset, "weight", weight);
  check_matches(op, "range", range, "weight", weight);
}

at::Tensor range_of(const at::Tensor& weight, QuantizedFormat format) {
  static const auto op = typed_operator<decltype(range_meta)>("limbeck::quantized_range");
  return op.call(weight, format_name(format));
}

QuantizedMatrix quantize_learned(const LearnedRounding& r) {
  static const auto op = typed_operator<decltype(quantize_learned_meta)>("limbeck::quantize_learned");
  return {r.format, r.weight.size(0), r.weight.size(1),
          op.call(r.weight, r.offset, r.range, format_name(r.format), r.scales)};
}

at::Tensor learned_values(const LearnedRounding& r) {
  static const auto op = typed_operator<decltype(learned_values_meta)>("limbeck::learned_values");
  return op.call(r.weight, r.offset, r.range, format_name(r.format), r.scales);
}

at::Tensor moved_to_codes(const at::Tensor& weight, const at::Tensor& range, const QuantizedMatrix& matrix) {
  static const auto op = typed_operator<decltype(moved_to_codes_meta)>("limbeck::moved_to_codes");
  return op.call(weight, range, matrix.parts, format_name(matrix.format));
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("quantized_range(Tensor weight, str format) -> Tensor");
  m.def(
      "quantize_learned(Tensor weight, Tensor offset, Tensor range, str format, ScalarType scales=float32) -> "
      "Tensor[]");
  m.def("learned_values(Tensor weight, Tensor offset, Tensor range, str format, ScalarType scales=float32) -> Tensor");
  m.def(
      "learned_gradients(Tensor gradient, Tensor weight, Tensor offset, Tensor range, str format, "
      "ScalarType scales=float32) -> (Tensor offset, Tensor range)");
  m.def("moved_to_codes(Tensor weight, Tensor range, Tensor[] parts, str format) -> Tensor");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("quantized_range", &range_meta);
  m.impl("quantize_learned", &quantize_learned_meta);
  m.impl("learned_values", &learned_values_meta);
  m.impl("learned_gradients", &learned_gradients_meta);
  m.impl("moved_to_codes", &moved_to_codes_meta);
}
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) { m.impl("learned_values", &learned_values_autograd); }

}  // namespace limbeck::kernels
