#include <ATen/Parallel.h>

#include "kernels/cpu/task_grain.h"
#include "kernels/rotary/rotary_on_device.h"

namespace limbeck::kernels {
namespace {

struct CpuRotary {
  static void rotate(const RotaryWork& work) {
    const int64_t per_position = work.arguments.heads * work.arguments.width;
    at::parallel_for(0, work.positions, items_per_task(per_position), [&](int64_t begin, int64_t end) {
      rotary_loops_here().rotate(work.storage, work.arguments, begin, end);
    });
  }
  static void rotate_both(const RotaryWork& q, const RotaryWork& k) {
    rotate(q);
    rotate(k);
  }
};

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { RotaryOn<CpuRotary>::add_to(m); }

}  // namespace
}  // namespace limbeck::kernels
