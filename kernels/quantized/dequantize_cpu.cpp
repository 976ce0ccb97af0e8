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
namespace {

void dequantize_words(const QuantizedView& v, int64_t row, int64_t begin, int64_t end, float* values) {
  static_assert(kSmallestGroup % kBlockCodes == 0, "a block has one scale");
  ValueScale scale{};
  const uint32_t* words = row_words(v, row);
  const int64_t all_words = words_of_row(v);
  for (int64_t i = begin; i < end;) {
    const int64_t block = i / kBlockCodes, first = block * kBlockCodes, stop = std::min(end, first + kBlockCodes);
    const int64_t word = block * v.format.bits;
    if (i == begin || i % v.format.group() == 0) scale = scale_at<CodeKind::kInt4>(v, row, i, kDynamicLevels.data());
    uint32_t nibbles[kNibbleWords];
    widen_some(v.format.bits, words + word, all_words - word, nibbles);
    const auto value = [&](int64_t k) {
      return value_of<CodeKind::kInt4>(static_cast<int>(nibbles[k / 8] >> k % 8 * 4 & 15u), scale, nullptr);
    };
    if (i == first && stop == first + kBlockCodes) {
      for (int64_t k = 0; k < kBlockCodes; ++k) values[i - begin + k] = value(k);
    } else {
      for (int64_t k = i - first; k < stop - first; ++k) values[first + k - begin] = value(k);
    }
    i = stop;
  }
}

template <CodeKind kind>
void dequantize_row(const QuantizedView& v, int64_t row, int64_t begin, int64_t end, float* values) {
  for (int64_t i = begin; i < end;) {
    const ValueScale scale = scale_at<kind>(v, row, i, kDynamicLevels.data());
    const int64_t stop = std::min(end, end_of_scale<kind>(v, row, i));
    for (; i < stop; ++i) values[i - begin] = value_of<kind>(code_at<kind>(v, row, i), scale, kNf4Levels.data());
  }
}

at::Tensor dequantize_cpu(at::TensorList parts, c10::string_view format, int64_t rows, int64_t columns, int64_t row,
                          int64_t count) {
  const QuantizedMatrix matrix = checked_matrix("dequantize_rows", parts, format, rows, columns);
  check_rows(matrix, row, count);
  at::Tensor out = at::empty({count, columns}, parts[0].options().dtype(at::kFloat));
  if (out.numel() == 0) return out;
  const QuantizedView view = view_of(matrix);
  auto* values = out.mutable_data_ptr<float>();
  at::parallel_for(0, count, items_per_task(columns), [&](int64_t begin, int64_t end) {
    dequantize_rectangle(view, row + begin, row + end, 0, columns, values + begin * columns);
  });
  return out;
}

}  // namespace

void dequantize_rectangle(const QuantizedView& view, int64_t row0, int64_t row1, int64_t column0, int64_t column1,
                          float* values) {
  const CodeKind kind = view.format.kind;
  const auto row_of = kind == CodeKind::kInt8   ? dequantize_row<CodeKind::kInt8>
                      : kind == CodeKind::kInt4 ? dequantize_words
                                                : dequantize_row<CodeKind::kNf4>;
  for (int64_t row = row0; row < row1; ++row)
    row_of(view, row, column0, column1, values + (row - row0) * (column1 - column0));
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("dequantize_rows", &dequantize_cpu); }

}  // namespace limbeck::kernels
