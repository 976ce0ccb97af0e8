#include <ATen/Parallel.h>
#include <torch/library.h>

#include "kernels/cpu/task_grain.h"
#include "kernels/dropout/dropout_operators.h"

namespace limbeck::kernels {
namespace {

at::Tensor dropout_on_cpu(const at::Tensor& x, const at::Tensor& tokens, int64_t key, double rate) {
  const at::Tensor out = dropout_output(x, tokens, key, rate);
  const DropoutWork work(x, tokens, key, rate, out);
  const Storage storage = storage_of(x);
  at::parallel_for(0, work.rows.count, items_per_task(2 * work.rows.width),
                   [&](int64_t begin, int64_t end) { dropout_loops_here().drop(storage, work.arguments, begin, end); });
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("dropout", dropout_on_cpu); }

}  // namespace
}  // namespace limbeck::kernels
