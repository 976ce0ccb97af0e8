#include "kernels/resolvent/tridiagonal_solve_cuda.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/resolvent/tridiagonal_solve.h"
#include "kernels/resolvent/tridiagonal_systems.h"

namespace limbeck::kernels {
namespace {

at::Tensor solve_on_cuda(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                         const at::Tensor& rhs) {
  const at::Tensor out = tridiagonal_solve_output(a, b, c, z, rhs);
  const c10::cuda::CUDAGuard guard(a.device());
  const DenseSystems dense(a, b, c, z, rhs);
  const at::Tensor pivots = at::empty({2 * a.numel()}, a.options());
  launch_tridiagonal_solve(dense.into(out), pivots.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { m.impl("tridiagonal_solve", solve_on_cuda); }

}  // namespace
}  // namespace limbeck::kernels
