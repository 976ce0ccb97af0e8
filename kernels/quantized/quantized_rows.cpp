#include "kernels/quantized/quantized_rows.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "kernels/operator/checks.h"
#include "kernels/operator/operator_handle.h"
#include "kernels/operator/planned_device.h"
#include "kernels/quantized/quantized_operands.h"

namespace limbeck::kernels {
namespace {

at::Tensor rows_meta(const at::Tensor& ids, at::TensorList parts, c10::string_view format, int64_t rows,
                     int64_t columns, at::ScalarType dtype) {
  const QuantizedMatrix matrix = checked_matrix("quantized_rows", parts, format, rows, columns);
  const at::Tensor values = empty_rows(ids, matrix, dtype);
  // The ids in one run of int64, and on a GPU what tells whether each of them is a row.
  const int64_t count = ids.numel();
  const bool copied = ids.scalar_type() != at::kLong || !ids.is_contiguous();
  hold_for_a_moment(ids, (copied ? count * 8 : 0) + (planned_device() == at::kCUDA ? 3 * count : 0));
  return values;
}

}  // namespace

at::Tensor empty_rows(const at::Tensor& ids, const QuantizedMatrix& matrix, at::ScalarType dtype) {
  TORCH_CHECK(ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt, "[quantized_rows] ids is ",
              described(ids), ", wanted int64 or int32");
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, "[quantized_rows] dtype is ", dtype,
              ", wanted float32, bfloat16 or float16");
  TORCH_CHECK(ids.device() == matrix.parts[0].device(), "[quantized_rows] the matrix is on ", matrix.parts[0].device(),
              ", wanted ", ids.device(), " as ids (", described(ids), ")");
  auto sizes = ids.sizes().vec();
  sizes.push_back(matrix.columns);
  return at::empty(sizes, ids.options().dtype(dtype));
}

at::Tensor quantized_rows(const at::Tensor& ids, const QuantizedMatrix& matrix, at::ScalarType dtype) {
  static const auto op = typed_operator<decltype(rows_meta)>("limbeck::quantized_rows");
  return op.call(ids, matrix.parts, format_name(matrix.format), matrix.rows, matrix.columns, dtype);
}

at::Tensor all_rows(const QuantizedMatrix& matrix, at::ScalarType dtype) {
  const auto options = matrix.parts.at(0).options().dtype(at::kLong);
  return quantized_rows(at::arange(matrix.rows, options), matrix, dtype);
}

TORCH_LIBRARY_FRAGMENT(limbeck, m) {
  m.def("quantized_rows(Tensor ids, Tensor[] parts, str format, int rows, int columns, ScalarType dtype) -> Tensor");
}
TORCH_LIBRARY_IMPL(limbeck, Meta, m) { m.impl("quantized_rows", &rows_meta); }
TORCH_LIBRARY_IMPL(limbeck, Autograd, m) {
  m.impl("quantized_rows", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace limbeck::kernels
