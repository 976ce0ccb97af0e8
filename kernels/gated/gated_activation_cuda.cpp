#include "kernels/gated/gated_activation_cuda.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>

#include "kernels/gated/gated_on_device.h"

namespace limbeck::kernels {
namespace {

struct CudaGated {
  static void forward(Storage storage, const GatedForward& args, int64_t rows) {
    launch_gated_forward(storage, args, rows, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  static void backward(Storage storage, const GatedBackward& args, int64_t rows) {
    launch_gated_backward(storage, args, rows, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { GatedOn<CudaGated>::add_to(m); }

}  // namespace
}  // namespace limbeck::kernels
