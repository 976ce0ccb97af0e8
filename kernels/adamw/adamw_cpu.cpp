#include <ATen/Parallel.h>
#include <torch/library.h>

#include "kernels/adamw/adamw.h"
#include "kernels/adamw/adamw_operators.h"
#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"

namespace limbeck::kernels {
namespace {

void step(at::TensorList parameters, at::TensorList gradients, at::TensorList masters, at::TensorList first,
          at::TensorList second, int64_t number, double learning_rate, double beta1, double beta2, double epsilon,
          double weight_decay, double gradient_scale) {
  const AdamWLists lists{parameters, gradients, masters, first, second};
  check_adamw(lists, number);
  const AdamWWork work(lists, number, learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale);
  for (const AdamWTensor& tensor : work.tensors) {
    at::parallel_for(0, tensor.count, kElementsPerTask,
                     [&](int64_t begin, int64_t end) { adamw_loops_here().step(work.arguments, tensor, begin, end); });
  }
}

at::Tensor square_sums(at::TensorList xs) {
  const at::Tensor out = square_sums_output(xs);
  const SquareSumsWork work(xs);
  auto* totals = out.mutable_data_ptr<double>();
  for (const SquaredTensor& tensor : work.tensors) {
    const int64_t runs = square_runs(tensor.count);
    at::parallel_for(0, runs, kElementsPerTask / kSquareRun, [&](int64_t begin, int64_t end) {
      adamw_loops_here().square_sums(work.storage, tensor.x, tensor.count, totals, begin, end);
    });
    totals += runs;
  }
  return out;
}

void accumulate(const at::Tensor& sum, const at::Tensor& x) {
  check_accumulate(sum, x);
  const at::Tensor dense = x.contiguous();
  const Storage storage = storage_of(dense);
  const void* from = dense.const_data_ptr();
  void* to = sum.mutable_data_ptr();
  at::parallel_for(0, sum.numel(), kElementsPerTask,
                   [&](int64_t begin, int64_t end) { adamw_loops_here().accumulate(storage, from, to, begin, end); });
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("adamw_step_", step);
  m.impl("square_sums", square_sums);
  m.impl("accumulate_", accumulate);
}

}  // namespace
}  // namespace limbeck::kernels
