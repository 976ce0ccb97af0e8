#include "kernels/quantized/quantized_matrix.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/quantized/quantized_operands.h"

namespace limbeck::kernels {
namespace {

constexpr std::array<QuantizedFormat, 4> kFormats = {QuantizedFormat::kInt8, QuantizedFormat::kInt4,
                                                     QuantizedFormat::kNf4, QuantizedFormat::kNf4Double};

}  // namespace

const char* format_name(QuantizedFormat format) {
  switch (format) {
    case QuantizedFormat::kInt8:
      return "int8";
    case QuantizedFormat::kInt4:
      return "int4";
    case QuantizedFormat::kNf4:
      return "nf4";
    case QuantizedFormat::kNf4Double:
      return "nf4-double";
  }
  return "unknown";
}

std::optional<QuantizedFormat> find_format(std::string_view name) {
  for (const QuantizedFormat format : kFormats) {
    if (name == format_name(format)) return format;
  }
  return std::nullopt;
}

std::vector<std::string> format_names() {
  std::vector<std::string> names;
  for (const QuantizedFormat format : kFormats) names.emplace_back(format_name(format));
  return names;
}

QuantizedFormat format_named(std::string_view name) {
  if (const auto found = find_format(name)) return *found;
  TORCH_CHECK(false, "quantized format \"", name, "\" is not known: wanted int8, int4, nf4 or nf4-double");
}

std::vector<QuantizedPart> parts_of(QuantizedFormat format, int64_t rows, int64_t columns) {
  const int64_t values = rows * columns, blocks = rounded_up_quotient(values, kNf4Block);
  switch (format) {
    case QuantizedFormat::kInt8:
      return {{"codes", at::kChar, {rows, columns}}, {"scales", at::kFloat, {rows}}};
    case QuantizedFormat::kInt4: {
      const int64_t groups = rounded_up_quotient(columns, kInt4Group);
      return {{"codes", at::kByte, {rows, rounded_up_quotient(columns, 2)}},
              {"scales", at::kFloat, {rows, groups}},
              {"lows", at::kFloat, {rows, groups}}};
    }
    case QuantizedFormat::kNf4:
      return {{"codes", at::kByte, {rounded_up_quotient(values, 2)}}, {"scales", at::kFloat, {blocks}}};
    case QuantizedFormat::kNf4Double:
      return {{"codes", at::kByte, {rounded_up_quotient(values, 2)}},
              {"scale_codes", at::kByte, {blocks}},
              {"scales", at::kFloat, {rounded_up_quotient(blocks, kScaleBlock)}},
              {"offset", at::kFloat, {1}}};
  }
  return {};
}

QuantizedMatrix checked_matrix(const char* op, at::TensorList parts, std::string_view format, int64_t rows,
                               int64_t columns) {
  TORCH_CHECK(rows >= 0 && columns >= 0, "[", op, "] a matrix of ", rows, " x ", columns);
  QuantizedMatrix matrix{format_named(format), rows, columns, parts.vec()};
  const auto wanted = parts_of(matrix.format, rows, columns);
  TORCH_CHECK(parts.size() == wanted.size(), "[", op, "] ", format, " came with ", parts.size(), " parts, wanted ",
              wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    const at::Tensor& part = parts[i];
    TORCH_CHECK(part.defined() && part.scalar_type() == wanted[i].dtype && part.sizes() == wanted[i].shape &&
                    part.is_contiguous(),
                "[", op, "] ", wanted[i].name, " is ", described(part), ", wanted ", c10::toString(wanted[i].dtype),
                " ", at::IntArrayRef(wanted[i].shape), ", contiguous, for ", format, " [", rows, ", ", columns, "]");
    TORCH_CHECK(part.device() == parts[0].device(), "[", op, "] ", wanted[i].name, " is on ", part.device(),
                ", wanted ", parts[0].device(), " as ", wanted[0].name);
  }
  return matrix;
}

void check_rows(const QuantizedMatrix& matrix, int64_t row, int64_t count) {
  TORCH_CHECK(row >= 0 && count >= 0 && row <= matrix.rows - count, "[dequantize_rows] rows ", row, " to ", row + count,
              " of ", matrix.rows);
}

QuantizedView view_of(const QuantizedMatrix& m) {
  const auto numbers = [&m](size_t part) { return m.parts[part].const_data_ptr<float>(); };
  const bool is_double = m.format == QuantizedFormat::kNf4Double;
  return {.format = m.format,
          .rows = m.rows,
          .columns = m.columns,
          .codes = m.parts[0].const_data_ptr(),
          .scales = numbers(is_double ? 2 : 1),
          .lows = m.format == QuantizedFormat::kInt4 ? numbers(2) : nullptr,
          .scale_codes = is_double ? m.parts[1].const_data_ptr<uint8_t>() : nullptr,
          .offset = is_double ? numbers(3) : nullptr};
}

namespace {

std::vector<at::Tensor> empty_parts(const at::Tensor& weight, c10::string_view format) {
  TORCH_CHECK(weight.dim() == 2, "[quantize_weight] weight is ", described(weight), ", wanted [rows, columns]");
  std::vector<at::Tensor> parts;
  for (const QuantizedPart& part : parts_of(format_named(format), weight.size(0), weight.size(1)))
    parts.push_back(at::empty(part.shape, weight.options().dtype(part.dtype)));
  return parts;
}

at::Tensor dequantize_meta(at::TensorList parts, c10::string_view format, int64_t rows, int64_t columns, int64_t row,
                           int64_t count) {
  check_rows(checked_matrix("dequantize_rows", parts, format, rows, columns), row, count);
  return at::empty({count, columns}, parts[0].options().dtype(at::kFloat));
}

}  // namespace

QuantizedMatrix quantize(const at::Tensor& weight, QuantizedFormat format) {
  static const auto op =
      typed_operator<std::vector<at::Tensor>(const at::Tensor&, c10::string_view)>("limbeck::quantize_weight");
  TORCH_CHECK(weight.dim() == 2, "[quantize_weight] weight is ", described(weight), ", wanted [rows, columns]");
  return {format, weight.size(0), weight.size(1), op.call(weight, format_name(format))};
}

at::Tensor dequantize_rows(const QuantizedMatrix& matrix, int64_t row, int64_t count) {
  static const auto op = typed_operator<decltype(dequantize_meta)>("limbeck::dequantize_rows");
  return op.call(matrix.parts, format_name(matrix.format), matrix.rows, matrix.columns, row, count);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("quantize_weight(Tensor weight, str format) -> Tensor[]");
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
