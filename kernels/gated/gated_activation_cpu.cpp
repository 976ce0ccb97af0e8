#include <ATen/Parallel.h>

#include "kernels/cpu/task_grain.h"
#include "kernels/gated/gated_on_device.h"

namespace limbeck::kernels {
namespace {

struct CpuGated {
  static void forward(Storage storage, const GatedForward& args, int64_t rows) {
    for_rows(args.width, rows,
             [&](int64_t begin, int64_t end) { gated_loops_here().forward(storage, args, begin, end); });
  }
  static void backward(Storage storage, const GatedBackward& args, int64_t rows) {
    for_rows(args.width, rows,
             [&](int64_t begin, int64_t end) { gated_loops_here().backward(storage, args, begin, end); });
  }

 private:
  template <class Loop>
  static void for_rows(int64_t width, int64_t rows, const Loop& loop) {
    at::parallel_for(0, rows, items_per_task(2 * width), loop);  // gate and up
  }
};

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { GatedOn<CpuGated>::add_to(m); }

}  // namespace
}  // namespace limbeck::kernels
