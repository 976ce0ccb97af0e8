#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/cpu/task_grain.h"
#include "kernels/quantized/quantized_cpu.h"
#include "kernels/quantized/quantized_operands.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {

QuantizedView::QuantizedView(const QuantizedMatrix& matrix)
    : format(matrix.format), rows(matrix.rows), columns(matrix.columns), codes(matrix.parts[0].const_data_ptr()) {
  if (format == QuantizedFormat::kNf4Double) {
    scale_codes = matrix.parts[1].const_data_ptr<uint8_t>();
    scales = matrix.parts[2].const_data_ptr<float>();
    offset = *matrix.parts[3].const_data_ptr<float>();
    return;
  }
  scales = matrix.parts[1].const_data_ptr<float>();
  if (format == QuantizedFormat::kInt4) lows = matrix.parts[2].const_data_ptr<float>();
}

namespace {

inline int code_at(const uint8_t* codes, int64_t i) { return i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15; }

void int8_row(const QuantizedView& v, int64_t row, int64_t begin, int64_t end, float* values) {
  const auto* codes = static_cast<const int8_t*>(v.codes) + row * v.columns;
  for (int64_t i = begin; i < end; ++i) values[i - begin] = static_cast<float>(codes[i]) * v.scales[row];
}

void int4_row(const QuantizedView& v, int64_t row, int64_t begin, int64_t end, float* values) {
  const auto* codes = static_cast<const uint8_t*>(v.codes) + row * ((v.columns + 1) / 2);
  const int64_t groups = (v.columns + kInt4Group - 1) / kInt4Group;
  for (int64_t i = begin; i < end;) {
    const int64_t group = row * groups + i / kInt4Group, stop = std::min(end, (i / kInt4Group + 1) * kInt4Group);
    const float scale = v.scales[group], low = v.lows[group];
    for (; i < stop; ++i) values[i - begin] = static_cast<float>(code_at(codes, i)) * scale + low;
  }
}

void nf4_row(const QuantizedView& v, int64_t row, int64_t begin, int64_t end, float* values) {
  const auto* codes = static_cast<const uint8_t*>(v.codes);
  const std::array<float, 256>& levels = dynamic_levels();
  const int64_t first = row * v.columns + begin, last = row * v.columns + end;
  for (int64_t i = first; i < last;) {
    const int64_t block = i / kNf4Block, stop = std::min(last, (block + 1) * kNf4Block);
    const float scale = v.scale_codes == nullptr
                            ? v.scales[block]
                            : levels[v.scale_codes[block]] * v.scales[block / kScaleBlock] + v.offset;
    for (; i < stop; ++i) values[i - first] = kNf4Levels[static_cast<size_t>(code_at(codes, i))] * scale;
  }
}

at::Tensor dequantize_cpu(at::TensorList parts, c10::string_view format, int64_t rows, int64_t columns, int64_t row,
                          int64_t count) {
  const QuantizedMatrix matrix = checked_matrix("dequantize_rows", parts, format, rows, columns);
  check_rows(matrix, row, count);
  at::Tensor out = at::empty({count, columns}, parts[0].options().dtype(at::kFloat));
  if (out.numel() == 0) return out;
  const QuantizedView view(matrix);
  auto* values = out.mutable_data_ptr<float>();
  at::parallel_for(0, count, items_per_task(columns), [&](int64_t begin, int64_t end) {
    dequantize_rectangle(view, row + begin, row + end, 0, columns, values + begin * columns);
  });
  return out;
}

}  // namespace

void dequantize_rectangle(const QuantizedView& view, int64_t row0, int64_t row1, int64_t column0, int64_t column1,
                          float* values) {
  const auto row_of = view.format == QuantizedFormat::kInt8   ? int8_row
                      : view.format == QuantizedFormat::kInt4 ? int4_row
                                                              : nf4_row;
  for (int64_t row = row0; row < row1; ++row)
    row_of(view, row, column0, column1, values + (row - row0) * (column1 - column0));
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("dequantize_rows", &dequantize_cpu); }

}  // namespace limbeck::kernels
