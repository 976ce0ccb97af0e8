// How the bodies on the CPU walk over groups of rows (grouped_linear.h).
#pragma once
#include <ATen/core/Tensor.h>

namespace limbeck::kernels {

// Calls one(group, begin, rows) for each group of `all` rows.
template <class One>
void for_cpu_groups(const char* op, const at::Tensor& ends, int64_t all, const One& one) {
  const at::Tensor dense = ends.contiguous();
  const auto* end = dense.const_data_ptr<int32_t>();
  int64_t begin = 0;
  for (int64_t group = 0; group < dense.size(0); ++group) {
    TORCH_CHECK(end[group] >= begin && end[group] <= all, "[", op, "] ends[", group, "] is ", end[group], ", wanted ",
                begin, " to ", all);
    one(group, begin, end[group] - begin);
    begin = end[group];
  }
  TORCH_CHECK(begin == all, "[", op, "] the last of ends is ", begin, ", wanted ", all, ", the number of rows");
}

}  // namespace limbeck::kernels
