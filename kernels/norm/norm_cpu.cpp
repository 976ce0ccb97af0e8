#include <ATen/Parallel.h>

#include <algorithm>

#include "kernels/cpu/task_grain.h"
#include "kernels/norm/norm_on_device.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kSumsPerTask = 1 << 17;

struct CpuNorm {
  static int64_t rows_per_block(int64_t rows, int64_t /*width*/) { return kernels::rows_per_block(rows); }

  static void forward(const NormForwardWork& work) {
    at::parallel_for(0, work.x.count, items_per_task(work.x.width), [&](int64_t begin, int64_t end) {
      norm_loops_here().forward(work.storage, work.arguments, begin, end);
    });
  }

  static void backward(const NormBackwardWork& work) {
    const int64_t rows = work.rows_per_block;
    at::parallel_for(0, work.blocks, items_per_task(rows * work.x.width), [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        norm_loops_here().backward(work.storage, work.arguments, block * rows,
                                   std::min(work.x.count, (block + 1) * rows), block);
      }
    });
  }

  static void sum_blocks(Storage storage, const void* partial, int64_t blocks, int64_t width, void* out) {
    // A small sum is done before a second thread has woken up.
    const int64_t columns = std::max<int64_t>(64, kSumsPerTask / std::max<int64_t>(1, blocks));
    at::parallel_for(0, width, columns, [&](int64_t begin, int64_t end) {
      norm_loops_here().sum_blocks(storage, partial, blocks, width, out, begin, end);
    });
  }
};

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { NormOn<CpuNorm>::add_to(m); }

}  // namespace
}  // namespace limbeck::kernels
