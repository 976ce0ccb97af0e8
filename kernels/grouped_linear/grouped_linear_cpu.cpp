#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels/grouped_linear/cpu_groups.h"
#include "kernels/grouped_linear/grouped_linear_operators.h"
#include "kernels/linear/linear_cpu.h"

namespace limbeck::kernels {
namespace {

// The processor's library gives a product other bits where an operand or the result begins elsewhere than at 16 bytes.
// The rows of a group must not have other bits for what stands before them.
bool begins_even(const at::Tensor& rows) { return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 == 0; }

at::Tensor rows_of_group(const at::Tensor& rows, int64_t begin, int64_t count) {
  const at::Tensor those = rows.narrow(0, begin, count);
  return begins_even(those) ? those : those.clone();
}

at::Tensor grouped_linear_on_cpu(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends) {
  check_grouped_linear(rows, weight, ends);
  const at::Tensor out = grouped_linear_output(rows, weight, ends);
  for_cpu_groups("grouped_linear", ends, rows.size(0), [&](int64_t group, int64_t begin, int64_t count) {
    if (count == 0) return;
    const at::Tensor result = out.narrow(0, begin, count);
    const at::Tensor place = begins_even(result) ? result : at::empty(result.sizes(), result.options());
    linear_into(place, rows_of_group(rows, begin, count), weight.select(0, group));
    if (!place.is_same(result)) result.copy_(place);
  });
  return out;
}

at::Tensor grouped_outer_on_cpu(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  check_grouped_outer(left, right, ends);
  const at::Tensor out = grouped_outer_output(left, right, ends);
  for_cpu_groups("grouped_outer", ends, left.size(0), [&](int64_t group, int64_t begin, int64_t count) {
    const at::Tensor sum = out.select(0, group);
    if (count == 0) {
      sum.zero_();
    } else {
      linear_into(sum, rows_of_group(left, begin, count).t(), rows_of_group(right, begin, count).t());
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("grouped_linear", grouped_linear_on_cpu);
  m.impl("grouped_outer", grouped_outer_on_cpu);
}

}  // namespace
}  // namespace limbeck::kernels
