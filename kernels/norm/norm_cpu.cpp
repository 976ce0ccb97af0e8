#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/cpu/task_grain.h"
#include "kernels/norm/norm_loops.h"
#include "kernels/norm/norm_operators.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kSumsPerTask = 1 << 17;

std::tuple<at::Tensor, at::Tensor> rms_norm_forward(const at::Tensor& x, const at::Tensor& weight, double eps,
                                                    bool unit_offset) {
  auto [y, rstd] = rms_norm_outputs(x, weight, eps, unit_offset);
  const Rows rows(x);
  const at::Tensor dense_weight = weight.contiguous();
  const NormForward args{rows.data,
                         rows.stride,
                         dense_weight.const_data_ptr(),
                         nullptr,
                         y.mutable_data_ptr(),
                         nullptr,
                         rstd.mutable_data_ptr(),
                         rows.width,
                         eps,
                         unit_offset};
  const Storage storage = storage_of(x);
  at::parallel_for(0, rows.count, items_per_task(rows.width),
                   [&](int64_t begin, int64_t end) { norm_loops_here().rms_forward(storage, args, begin, end); });
  return {y, rstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_forward(const at::Tensor& x, const at::Tensor& weight,
                                                                  const std::optional<at::Tensor>& bias, double eps) {
  auto [y, mean, rstd] = layer_norm_outputs(x, weight, bias, eps);
  const Rows rows(x);
  const at::Tensor dense_weight = weight.contiguous();
  const at::Tensor dense_bias = bias.has_value() ? bias->contiguous() : at::Tensor();
  const NormForward args{rows.data,
                         rows.stride,
                         dense_weight.const_data_ptr(),
                         dense_bias.defined() ? dense_bias.const_data_ptr() : nullptr,
                         y.mutable_data_ptr(),
                         mean.mutable_data_ptr(),
                         rstd.mutable_data_ptr(),
                         rows.width,
                         eps,
                         false};
  const Storage storage = storage_of(x);
  at::parallel_for(0, rows.count, items_per_task(rows.width),
                   [&](int64_t begin, int64_t end) { norm_loops_here().layer_forward(storage, args, begin, end); });
  return {y, mean, rstd};
}

// Sums over rows in a fixed order whatever the threads: each block of rows has a row of partial sums of its own.
class PartialSums {
 public:
  PartialSums(const at::Tensor& x, int64_t rows, int64_t width, bool wanted)
      : blocks_(row_blocks(rows)), width_(width), storage_(storage_of(x)) {
    if (wanted) sums_ = at::empty({blocks_, width}, x.options().dtype(wide_type(x)));
  }

  void* data() const { return sums_.defined() ? sums_.mutable_data_ptr() : nullptr; }

  void reduce_into(const at::Tensor& out) const {
    if (!sums_.defined()) return;
    // A small sum is done before a second thread has woken up.
    const int64_t columns = std::max<int64_t>(64, kSumsPerTask / std::max<int64_t>(1, blocks_));
    at::parallel_for(0, width_, columns, [&](int64_t begin, int64_t end) {
      norm_loops_here().sum_blocks(storage_, sums_.const_data_ptr(), blocks_, width_, out.mutable_data_ptr(), begin,
                                   end);
    });
  }

 private:
  at::Tensor sums_;
  int64_t blocks_;
  int64_t width_;
  Storage storage_;
};

template <class Loop>
void for_row_blocks(int64_t rows, int64_t width, const Loop& loop) {
  const int64_t per_block = rows_per_block(rows);
  at::parallel_for(0, row_blocks(rows), items_per_task(per_block * width), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      loop(block * per_block, std::min(rows, (block + 1) * per_block), block);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                     const at::Tensor& weight, const at::Tensor& rstd, bool unit_offset,
                                                     std::array<bool, 2> mask) {
  auto [grad_x, grad_weight] = rms_norm_gradients(grad, x, weight, rstd, unit_offset, mask);
  const Rows x_rows(x), grad_rows(grad);
  const at::Tensor dense_weight = weight.contiguous(), dense_rstd = rstd.contiguous();
  const PartialSums partial_weight(x, x_rows.count, x_rows.width, mask[1]);
  const NormBackward args{grad_rows.data,
                          grad_rows.stride,
                          x_rows.data,
                          x_rows.stride,
                          dense_weight.const_data_ptr(),
                          nullptr,
                          dense_rstd.const_data_ptr(),
                          mask[0] ? grad_x.mutable_data_ptr() : nullptr,
                          partial_weight.data(),
                          nullptr,
                          x_rows.width,
                          unit_offset};
  const Storage storage = storage_of(x);
  for_row_blocks(x_rows.count, x_rows.width, [&](int64_t begin, int64_t end, int64_t block) {
    norm_loops_here().rms_backward(storage, args, begin, end, block);
  });
  partial_weight.reduce_into(grad_weight);
  return {grad_x, grad_weight};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                   const at::Tensor& weight, const at::Tensor& mean,
                                                                   const at::Tensor& rstd, std::array<bool, 3> mask) {
  auto [grad_x, grad_weight, grad_bias] = layer_norm_gradients(grad, x, weight, mean, rstd, mask);
  const Rows x_rows(x), grad_rows(grad);
  const at::Tensor dense_weight = weight.contiguous(), dense_mean = mean.contiguous(), dense_rstd = rstd.contiguous();
  const PartialSums partial_weight(x, x_rows.count, x_rows.width, mask[1]);
  const PartialSums partial_bias(x, x_rows.count, x_rows.width, mask[2]);
  const NormBackward args{grad_rows.data,
                          grad_rows.stride,
                          x_rows.data,
                          x_rows.stride,
                          dense_weight.const_data_ptr(),
                          dense_mean.const_data_ptr(),
                          dense_rstd.const_data_ptr(),
                          mask[0] ? grad_x.mutable_data_ptr() : nullptr,
                          partial_weight.data(),
                          partial_bias.data(),
                          x_rows.width,
                          false};
  const Storage storage = storage_of(x);
  for_row_blocks(x_rows.count, x_rows.width, [&](int64_t begin, int64_t end, int64_t block) {
    norm_loops_here().layer_backward(storage, args, begin, end, block);
  });
  partial_weight.reduce_into(grad_weight);
  partial_bias.reduce_into(grad_bias);
  return {grad_x, grad_weight, grad_bias};
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("rms_norm_forward", rms_norm_forward);
  m.impl("rms_norm_backward", rms_norm_backward);
  m.impl("layer_norm_forward", layer_norm_forward);
  m.impl("layer_norm_backward", layer_norm_backward);
}

}  // namespace
}  // namespace limbeck::kernels
