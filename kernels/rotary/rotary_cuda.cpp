#include "kernels/rotary/rotary_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "kernels/rotary/rotary_on_device.h"

namespace limbeck::kernels {
namespace {

struct CudaRotary {
  static void rotate(const RotaryWork& work) {
    launch_rotary(work.storage, work.arguments, {}, work.positions, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  static void rotate_both(const RotaryWork& q, const RotaryWork& k) {
    const RotaryArguments& a = k.arguments;
    const int64_t positions = k.positions > q.positions ? k.positions : q.positions;  // without heads there are none
    launch_rotary(q.storage, q.arguments, {a.x, a.x_batch, a.x_time, a.x_head, a.y, a.heads}, positions,
                  c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { RotaryOn<CudaRotary>::add_to(m); }

}  // namespace
}  // namespace limbeck::kernels
