#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "kernels/cpu/task_grain.h"
#include "kernels/quantized/quantized_cpu.h"
#include "kernels/quantized/quantized_operands.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {
namespace {

void require_rows(const int64_t* ids, int64_t count, int64_t rows) {
  for (int64_t i = 0; i < count; ++i) {
    TORCH_CHECK_INDEX(ids[i] >= 0 && ids[i] < rows, "[quantized_rows] id ", ids[i], " is out of range, wanted 0 to ",
                      rows - 1, " for a matrix of ", rows, " rows");
  }
}

template <class T>
void look_up(const QuantizedView& view, const int64_t* ids, int64_t count, T* values) {
  at::parallel_for(0, count, items_per_task(view.columns), [&](int64_t begin, int64_t end) {
    std::vector<float> row(static_cast<size_t>(view.columns));
    for (int64_t i = begin; i < end; ++i) {
      dequantize_rectangle(view, ids[i], ids[i] + 1, 0, view.columns, row.data());
      std::transform(row.begin(), row.end(), values + i * view.columns, [](float x) { return static_cast<T>(x); });
    }
  });
}

at::Tensor rows_cpu(const at::Tensor& ids, at::TensorList parts, c10::string_view format, int64_t rows, int64_t columns,
                    at::ScalarType dtype) {
  const QuantizedMatrix matrix = checked_matrix("quantized_rows", parts, format, rows, columns);
  at::Tensor values = empty_rows(ids, matrix, dtype);
  const at::Tensor dense = ids.contiguous().to(at::kLong);
  const auto* wanted = dense.const_data_ptr<int64_t>();
  require_rows(wanted, dense.numel(), rows);
  if (values.numel() == 0) return values;
  const QuantizedView view = view_of(matrix);
  if (dtype == at::kFloat) {
    look_up(view, wanted, dense.numel(), values.mutable_data_ptr<float>());
  } else if (dtype == at::kBFloat16) {
    look_up(view, wanted, dense.numel(), values.mutable_data_ptr<at::BFloat16>());
  } else {
    look_up(view, wanted, dense.numel(), values.mutable_data_ptr<at::Half>());
  }
  return values;
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("quantized_rows", &rows_cpu); }

}  // namespace limbeck::kernels
