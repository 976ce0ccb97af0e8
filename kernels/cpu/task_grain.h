// How much work a thread must get to repay waking it, for at::parallel_for.
#pragma once

#include <algorithm>
#include <cstdint>

namespace limbeck::kernels {

inline constexpr int64_t kElementsPerTask = 1 << 14;

inline int64_t items_per_task(int64_t elements_per_item) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, elements_per_item));
}

}  // namespace limbeck::kernels
