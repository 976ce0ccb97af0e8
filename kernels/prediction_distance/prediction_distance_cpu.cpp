#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/prediction_distance/prediction_distance_loops.h"
#include "kernels/prediction_distance/prediction_distance_operators.h"

namespace limbeck::kernels {
namespace {

struct RowsOf {
  explicit RowsOf(const at::Tensor& logits) : rows(logits), storage(storage_of(logits)) {}
  DistanceOperand at(int64_t row) const {
    const auto bytes = static_cast<int64_t>(rows.tensor.element_size());
    return {storage, static_cast<const char*>(rows.data) + row * rows.stride * bytes};
  }
  const Rows rows;
  const Storage storage;
};

at::Tensor log_sums_on_cpu(const at::Tensor& logits) {
  const at::Tensor sums = log_sums_output(logits);
  const RowsOf all(logits);
  const int64_t width = all.rows.width;
  auto* to = sums.mutable_data_ptr<double>();
  at::parallel_for(0, all.rows.count, items_per_task(width), [&](int64_t begin, int64_t end) {
    std::vector<float> room(static_cast<size_t>(width));
    for (int64_t row = begin; row < end; ++row)
      to[row] = distance_loops_here().log_sum(all.storage, all.at(row).row, width, room.data());
  });
  return sums;
}

DistanceTensors distances_on_cpu(const at::Tensor& logits, const at::Tensor& reference,
                                 const at::Tensor& of_reference) {
  const DistanceTensors out = distances_output(logits, reference, of_reference);
  const RowsOf all(logits), others(reference);
  const int64_t width = all.rows.width;
  const bool wide = all.storage == Storage::kFloat64 || others.storage == Storage::kFloat64;
  const at::Tensor sums_of_others = of_reference.contiguous();
  const auto* of_others = sums_of_others.const_data_ptr<double>();
  auto* sums = std::get<0>(out).mutable_data_ptr<double>();
  auto* kl = std::get<1>(out).mutable_data_ptr<double>();
  auto* squares = std::get<2>(out).mutable_data_ptr<double>();
  at::parallel_for(0, all.rows.count, items_per_task(2 * width), [&](int64_t begin, int64_t end) {
    std::vector<float> room(wide ? 0 : static_cast<size_t>(3 * width));
    std::vector<double> wide_room(wide ? static_cast<size_t>(2 * width) : 0);
    for (int64_t row = begin; row < end; ++row) {
      const DistanceRow found = distance_loops_here().distances(all.at(row), others.at(row), of_others[row], width,
                                                                room.data(), wide ? wide_room.data() : nullptr);
      sums[row] = found.log_sum, kl[row] = found.kl, squares[row] = found.squares;
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("log_sums", &log_sums_on_cpu);
  m.impl("prediction_distances", &distances_on_cpu);
}

}  // namespace
}  // namespace limbeck::kernels
