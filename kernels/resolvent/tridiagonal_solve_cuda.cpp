#include "kernels/resolvent/tridiagonal_solve_cuda.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "kernels/resolvent/resolvent_plan.h"
#include "kernels/resolvent/tridiagonal_solve.h"
#include "kernels/resolvent/tridiagonal_systems.h"

namespace limbeck::kernels {
namespace {

at::Tensor solve_on_cuda(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                         const at::Tensor& rhs) {
  const at::Tensor out = tridiagonal_solve_output(a, b, c, z, rhs);
  const c10::cuda::CUDAGuard guard(a.device());
  const DenseSystems dense(a, b, c, z, rhs);
  const TridiagonalSystems systems = dense.into(out);
  const int64_t numbers = tridiagonal_scratch_numbers(systems.rows, systems.n, systems.columns);
  const at::Tensor scratch = at::empty({numbers}, a.options());
  launch_tridiagonal_solve(systems, scratch.mutable_data_ptr<double>(), c10::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CUDA, m) { m.impl("tridiagonal_solve", solve_on_cuda); }

}  // namespace
}  // namespace limbeck::kernels
