// The quantized operators on CUDA: compositions of ATen operators over some rows of the matrix at a time. Plain C++:
// nothing here needs nvcc or the CUDA library. Weights are quantized on the CPU and moved.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/quantized/quantized_operands.h"

namespace limbeck::kernels {
namespace {

using at::Tensor;

constexpr int64_t kValuesAtOnce = int64_t{1} << 24;  // 64 MB in float32

int64_t rows_at_once(const QuantizedMatrix& matrix) {
  return std::max<int64_t>(1, kValuesAtOnce / std::max<int64_t>(1, matrix.columns));
}

// [..., bytes] -> [..., 2 bytes], the high half first.
Tensor half_bytes(const Tensor& packed) {
  return at::stack({packed.div(16, "floor"), packed.remainder(16)}, -1).flatten(-2);
}

template <size_t N>
Tensor level_of(const std::array<float, N>& levels, const Tensor& codes) {
  const auto on_cpu = at::from_blob(const_cast<float*>(levels.data()), {static_cast<int64_t>(N)}, at::kFloat);
  return on_cpu.to(codes.device()).index_select(0, codes.to(at::kLong));
}

Tensor composed_int4_rows(const QuantizedMatrix& m, int64_t row, int64_t count) {
  const auto codes = half_bytes(m.parts[0].narrow(0, row, count)).narrow(1, 0, m.columns).to(at::kFloat);
  const auto group = at::arange(m.columns, codes.options().dtype(at::kLong)).div(kInt4Group, "floor");
  const auto spread = [&](const Tensor& part) { return part.narrow(0, row, count).index_select(1, group); };
  return codes * spread(m.parts[1]) + spread(m.parts[2]);
}

Tensor composed_nf4_rows(const QuantizedMatrix& m, int64_t row, int64_t count) {
  const int64_t begin = row * m.columns, end = (row + count) * m.columns;
  const auto bytes = m.parts[0].slice(0, begin / 2, (end + 1) / 2);
  const auto level = level_of(kNf4Levels, half_bytes(bytes).narrow(0, begin % 2, end - begin));
  const auto block = at::arange(begin, end, bytes.options().dtype(at::kLong)).div(kNf4Block, "floor");
  if (m.format == QuantizedFormat::kNf4) return (level * m.parts[1].index_select(0, block)).view({count, m.columns});
  const auto scale_level = level_of(dynamic_levels(), m.parts[1].index_select(0, block));
  const auto scale = scale_level * m.parts[2].index_select(0, block.div(kScaleBlock, "floor")) + m.parts[3];
  return (level * scale).view({count, m.columns});
}

}  // namespace

Tensor composed_dequantize_rows(const QuantizedMatrix& m, int64_t row, int64_t count) {
  check_rows(m, row, count);
  if (count == 0 || m.columns == 0) return at::empty({count, m.columns}, m.parts[0].options().dtype(at::kFloat));
  if (m.format == QuantizedFormat::kInt8)
    return m.parts[0].narrow(0, row, count).to(at::kFloat) * m.parts[1].narrow(0, row, count).unsqueeze(1);
  return m.format == QuantizedFormat::kInt4 ? composed_int4_rows(m, row, count) : composed_nf4_rows(m, row, count);
}

Tensor composed_quantized_linear(const Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias) {
  check_quantized_linear(x, weight, bias);
  auto sizes = x.sizes().vec();
  sizes.back() = weight.rows;
  const auto wide = x.reshape({-1, weight.columns}).to(at::kFloat);
  auto y = at::empty({wide.size(0), weight.rows}, x.options());
  const int64_t step = rows_at_once(weight);
  for (int64_t row = 0; row < weight.rows; row += step) {
    const int64_t count = std::min(step, weight.rows - row);
    auto part = at::mm(wide, composed_dequantize_rows(weight, row, count).t());
    if (bias) part.add_(bias->narrow(0, row, count).to(at::kFloat));
    y.narrow(1, row, count).copy_(part);
  }
  return y.view(sizes);
}

Tensor composed_quantized_backward(const Tensor& dy, const QuantizedMatrix& weight) {
  check_quantized_backward(dy, weight);
  auto sizes = dy.sizes().vec();
  sizes.back() = weight.columns;
  const auto wide = dy.reshape({-1, weight.rows}).to(at::kFloat);
  auto dx = at::zeros({wide.size(0), weight.columns}, wide.options());
  const int64_t step = rows_at_once(weight);
  for (int64_t row = 0; row < weight.rows; row += step) {
    const int64_t count = std::min(step, weight.rows - row);
    dx.addmm_(wide.narrow(1, row, count), composed_dequantize_rows(weight, row, count));
  }
  return dx.to(dy.scalar_type()).view(sizes);
}

namespace {

Tensor dequantize_cuda(at::TensorList parts, c10::string_view format, int64_t rows, int64_t columns, int64_t row,
                       int64_t count) {
  return composed_dequantize_rows(checked_matrix("dequantize_rows", parts, format, rows, columns), row, count);
}

Tensor quantized_linear_cuda(const Tensor& x, at::TensorList parts, c10::string_view format, int64_t rows,
                             int64_t columns, const OptionalBias& bias) {
  return composed_quantized_linear(x, checked_matrix("quantized_linear", parts, format, rows, columns), bias);
}

Tensor quantized_backward_cuda(const Tensor& dy, at::TensorList parts, c10::string_view format, int64_t rows,
                               int64_t columns) {
  return composed_quantized_backward(dy, checked_matrix("quantized_linear_backward", parts, format, rows, columns));
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) {
  m.impl("dequantize_rows", &dequantize_cuda);
  m.impl("quantized_linear", &quantized_linear_cuda);
  m.impl("quantized_linear_backward", &quantized_backward_cuda);
}

}  // namespace limbeck::kernels
