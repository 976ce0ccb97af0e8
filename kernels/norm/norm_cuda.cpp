#include "kernels/norm/norm_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>

#include "kernels/norm/norm_on_device.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kThreadsWanted = 1 << 17;

struct CudaNorm {
  // A thread adds a column of a block of rows: narrow rows are cut into more blocks, so that a GPU has threads enough.
  static int64_t rows_per_block(int64_t rows, int64_t width) {
    const int64_t blocks = std::clamp<int64_t>(kThreadsWanted / width, 64, 1024);
    return std::max<int64_t>(8, (rows + blocks - 1) / blocks);
  }

  static void forward(const NormForwardWork& work) {
    launch_norm_forward(work.storage, work.arguments, work.x.count, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void backward(const NormBackwardWork& work) {
    launch_norm_backward(work.storage, work.arguments, work.x.count, work.rows_per_block,
                         c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void sum_blocks(Storage storage, const void* partial, int64_t blocks, int64_t width, void* out) {
    launch_sum_blocks(storage, partial, blocks, width, out, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { NormOn<CudaNorm>::add_to(m); }

}  // namespace
}  // namespace limbeck::kernels
