#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels/cpu/task_grain.h"
#include "kernels/quantized/dequantize_loops.h"
#include "kernels/quantized/quantized_cpu.h"
#include "kernels/quantized/quantized_operands.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {
namespace {

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
  dequantize_loops_here().rectangle(
      {view, kNf4Levels.data(), kDynamicLevels.data(), row0, row1, column0, column1, values});
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("dequantize_rows", &dequantize_cpu); }

}  // namespace limbeck::kernels
