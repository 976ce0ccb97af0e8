#include "kernels/quantized/quantized_matrix.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/quantized/quantized_operands.h"
#include "kernels/quantized/quantized_stack.h"

namespace limbeck::kernels {
namespace {

struct NamedFormat {
  const char* name;
  QuantizedFormat format;
};

constexpr QuantizedFormat int8(int group_shift) { return {CodeKind::kInt8, 8, group_shift}; }
constexpr QuantizedFormat with_zeros(int bits, int group_shift) {
  return {CodeKind::kInt4, bits, group_shift, /*has_zeros=*/true};
}
constexpr QuantizedFormat symmetric(int bits, int group_shift) { return {CodeKind::kInt4, bits, group_shift}; }

constexpr QuantizedFormat int4_dynamic(int group_shift) {
  return {CodeKind::kInt4, 4, group_shift, /*has_zeros=*/false, /*double_scales=*/false, /*dynamic=*/true};
}

constexpr std::array kFormats = {
    NamedFormat{"int8", QuantizedFormat::kInt8},
    NamedFormat{"int8-g128", int8(7)},
    NamedFormat{"int8-g64", int8(6)},
    NamedFormat{"int8-g32", int8(5)},
    NamedFormat{"int8-dynamic", QuantizedFormat::kInt8Dynamic},
    NamedFormat{"int4", QuantizedFormat::kInt4},
    NamedFormat{"int4-g64", with_zeros(4, 6)},
    NamedFormat{"int4-g32", with_zeros(4, 5)},
    NamedFormat{"int4-sym", symmetric(4, 7)},
    NamedFormat{"int4-sym-g64", symmetric(4, 6)},
    NamedFormat{"int4-sym-g32", symmetric(4, 5)},
    NamedFormat{"int4-sym-dynamic", int4_dynamic(7)},
    NamedFormat{"int4-sym-g32-dynamic", int4_dynamic(5)},
    NamedFormat{"int3", with_zeros(3, 7)},
    NamedFormat{"int3-g64", with_zeros(3, 6)},
    NamedFormat{"int3-g32", with_zeros(3, 5)},
    NamedFormat{"int3-sym", symmetric(3, 7)},
    NamedFormat{"int3-sym-g64", symmetric(3, 6)},
    NamedFormat{"int3-sym-g32", symmetric(3, 5)},
    NamedFormat{"int2", with_zeros(2, 7)},
    NamedFormat{"int2-g64", with_zeros(2, 6)},
    NamedFormat{"int2-g32", with_zeros(2, 5)},
    NamedFormat{"int2-sym", symmetric(2, 7)},
    NamedFormat{"int2-sym-g64", symmetric(2, 6)},
    NamedFormat{"int2-sym-g32", symmetric(2, 5)},
    NamedFormat{"nf4", QuantizedFormat::kNf4},
    NamedFormat{"nf4-double", QuantizedFormat::kNf4Double},
};

}  // namespace

const char* format_name(QuantizedFormat format) {
  for (const NamedFormat& known : kFormats) {
    if (known.format == format) return known.name;
  }
  return "unknown";
}

std::optional<QuantizedFormat> find_format(std::string_view name) {
  for (const NamedFormat& known : kFormats) {
    if (known.name == name) return known.format;
  }
  return std::nullopt;
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const NamedFormat& known : kFormats) names.emplace_back(known.name);
  return names;
}

QuantizedFormat format_named(std::string_view name) {
  if (const auto found = find_format(name)) return *found;
  std::string known;
  for (const NamedFormat& format : kFormats) known += (known.empty() ? "" : ", ") + std::string(format.name);
  TORCH_CHECK(false, "quantized format \"", name, "\" is not known: wanted one of ", known);
}

std::vector<QuantizedPart> parts_of(QuantizedFormat format, int64_t rows, int64_t columns, at::ScalarType scales) {
  const int64_t values = rows * columns, blocks = rounded_up_quotient(values, kNf4Block);
  switch (format.kind) {
    case CodeKind::kInt8: {
      std::vector<int64_t> of_rows = {rows};
      if (format.has_groups()) of_rows.push_back(rounded_up_quotient(columns, format.group()));
      return {{"codes", at::kChar, {rows, columns}}, {"scales", scales, of_rows}};
    }
    case CodeKind::kInt4: {
      const int64_t groups = rounded_up_quotient(columns, format.group());
      std::vector<QuantizedPart> parts = {{"codes", at::kInt, {rows, words_of_codes(format.bits, columns)}},
                                          {"scales", scales, {rows, groups}}};
      if (format.has_zeros) parts.push_back({"zeros", at::kInt, {words_of_codes(format.bits, rows), groups}});
      return parts;
    }
    case CodeKind::kNf4:
      break;
  }
  if (!format.double_scales) {
    return {{"codes", at::kByte, {rounded_up_quotient(values, 2)}}, {"scales", at::kFloat, {blocks}}};
  }
  return {{"codes", at::kByte, {rounded_up_quotient(values, 2)}},
          {"scale_codes", at::kByte, {blocks}},
          {"scales", at::kFloat, {rounded_up_quotient(blocks, kScaleBlock)}},
          {"offset", at::kFloat, {1}}};
}

at::ScalarType QuantizedMatrix::scales() const {
  return format.kind == CodeKind::kNf4 ? at::kFloat : parts.at(1).scalar_type();
}

void check_parts(const char* op, at::TensorList parts, QuantizedFormat format, int64_t count, int64_t rows,
                 int64_t columns) {
  TORCH_CHECK(rows >= 0 && columns >= 0, "[", op, "] a matrix of ", rows, " x ", columns);
  auto wanted = count == 0 ? parts_of(format, rows, columns) : parts_of_stack(format, count, rows, columns);
  TORCH_CHECK(parts.size() == wanted.size(), "[", op, "] ", format_name(format), " came with ", parts.size(),
              " parts, wanted ", wanted.size());
  if (format.kind != CodeKind::kNf4 && parts[1].defined()) {
    const auto scales = parts[1].scalar_type();
    TORCH_CHECK(scales == at::kFloat || scales == at::kBFloat16 || scales == at::kHalf, "[", op, "] scales is ",
                described(parts[1]), ", wanted float32, bfloat16 or float16");
    wanted[1].dtype = scales;
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    const at::Tensor& part = parts[i];
    TORCH_CHECK(part.defined() && part.scalar_type() == wanted[i].dtype && part.sizes() == wanted[i].shape &&
                    part.is_contiguous(),
                "[", op, "] ", wanted[i].name, " is ", described(part), ", wanted ", c10::toString(wanted[i].dtype),
                " ", at::IntArrayRef(wanted[i].shape), ", contiguous, for ", format_name(format), " [", rows, ", ",
                columns, "]");
    TORCH_CHECK(part.device() == parts[0].device(), "[", op, "] ", wanted[i].name, " is on ", part.device(),
                ", wanted ", parts[0].device(), " as ", wanted[0].name);
  }
}

QuantizedMatrix checked_matrix(const char* op, at::TensorList parts, std::string_view format, int64_t rows,
                               int64_t columns) {
  QuantizedMatrix matrix{format_named(format), rows, columns, parts.vec()};
  check_parts(op, parts, matrix.format, /*count=*/0, rows, columns);
  return matrix;
}

void check_rows(const QuantizedMatrix& matrix, int64_t row, int64_t count) {
  TORCH_CHECK(row >= 0 && count >= 0 && row <= matrix.rows - count, "[dequantize_rows] rows ", row, " to ", row + count,
              " of ", matrix.rows);
}

QuantizedView view_of(const QuantizedMatrix& m) {
  const bool is_double = m.format.double_scales;
  const at::Tensor& scales = m.parts[is_double ? 2 : 1];
  return {
      .format = m.format,
      .rows = m.rows,
      .columns = m.columns,
      .codes = m.parts[0].const_data_ptr(),
      .scales = scales.const_data_ptr(),
      .scale_storage = storage_of(scales),
      .zeros = m.format.has_zeros ? reinterpret_cast<const uint32_t*>(m.parts[2].const_data_ptr<int32_t>()) : nullptr,
      .scale_codes = is_double ? m.parts[1].const_data_ptr<uint8_t>() : nullptr,
      .offset = is_double ? m.parts[3].const_data_ptr<float>() : nullptr};
}

namespace {

std::vector<at::Tensor> empty_parts(const at::Tensor& weight, c10::string_view format, at::ScalarType scales) {
  TORCH_CHECK(weight.dim() == 2, "[quantize_weight] weight is ", described(weight), ", wanted [rows, columns]");
  std::vector<at::Tensor> parts;
  for (const QuantizedPart& part : parts_of(format_named(format), weight.size(0), weight.size(1), scales))
    parts.push_back(at::empty(part.shape, weight.options().dtype(part.dtype)));
  return parts;
}

at::Tensor dequantize_meta(at::TensorList parts, c10::string_view format, int64_t rows, int64_t columns, int64_t row,
                           int64_t count) {
  check_rows(checked_matrix("dequantize_rows", parts, format, rows, columns), row, count);
  return at::empty({count, columns}, parts[0].options().dtype(at::kFloat));
}

}  // namespace

QuantizedMatrix quantize(const at::Tensor& weight, QuantizedFormat format, at::ScalarType scales) {
  static const auto op = typed_operator<decltype(empty_parts)>("limbeck::quantize_weight");
  TORCH_CHECK(weight.dim() == 2, "[quantize_weight] weight is ", described(weight), ", wanted [rows, columns]");
  return {format, weight.size(0), weight.size(1), op.call(weight, format_name(format), scales)};
}

at::Tensor dequantize_rows(const QuantizedMatrix& matrix, int64_t row, int64_t count) {
  static const auto op = typed_operator<decltype(dequantize_meta)>("limbeck::dequantize_rows");
  return op.call(matrix.parts, format_name(matrix.format), matrix.rows, matrix.columns, row, count);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("quantize_weight(Tensor weight, str format, ScalarType scales=float32) -> Tensor[]");
  m.def("dequantize_rows(Tensor[] parts, str format, int rows, int columns, int row, int count) -> Tensor");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) {
  m.impl("quantize_weight", &empty_parts);
  m.impl("dequantize_rows", &dequantize_meta);
}
// A quantized matrix is frozen.
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("quantize_weight", torch::autograd::autogradNotImplementedFallback());
  m.impl("dequantize_rows", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace limbeck::kernels
