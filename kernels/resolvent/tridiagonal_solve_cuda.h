// Launcher of the CUDA kernels of tridiagonal systems. All pointers are device pointers; nothing synchronises.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/resolvent/tridiagonal_formula.h"

namespace limbeck::kernels {

// scratch: as many numbers as resolvent_plan.h has for it. Where z is not finite or Im z <= 0, which the host cannot
// see without waiting, the row's results are NaN.
void launch_tridiagonal_solve(const TridiagonalSystems& systems, double* scratch, cudaStream_t stream);

}  // namespace limbeck::kernels
