// Tridiagonal systems on CUDA: a thread goes along a row for its pivots, then one along each column of each row. Equal
// inputs give equal bits.
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/resolvent/tridiagonal_solve_cuda.h"

namespace limbeck::kernels {
namespace {

constexpr int kThreads = 64;  // few a block: there are no more of them than rows times columns

__global__ void pivots_of_rows(TridiagonalSystems systems, double* pivots) {
  const int64_t row = thread_number();
  if (row >= systems.rows) return;
  const Complex<double> z = point_above(pair_at(systems.z, row));
  const TridiagonalSystem system = systems.at(row, z, pivots + 2 * row * systems.n);
  for (int64_t i = 0; i < systems.n; ++i) system.make_pivot(i);
}

__global__ void columns_of_rows(TridiagonalSystems systems, double* pivots) {
  const int64_t row = thread_number() / systems.columns, column = thread_number() % systems.columns;
  if (row >= systems.rows) return;
  const TridiagonalSystem system = systems.at(row, {0.0, 0.0}, pivots + 2 * row * systems.n);  // z is in the pivots
  for (int64_t i = 0; i < systems.n; ++i) system.eliminate(i, column);
  for (int64_t i = systems.n - 1; i >= 0; --i) system.put_in(i, column);
}

}  // namespace

void launch_tridiagonal_solve(const TridiagonalSystems& systems, double* pivots, cudaStream_t stream) {
  if (systems.rows * systems.columns == 0) return;
  pivots_of_rows<<<blocks_for(systems.rows, kThreads), kThreads, 0, stream>>>(systems, pivots);
  columns_of_rows<<<blocks_for(systems.rows * systems.columns, kThreads), kThreads, 0, stream>>>(systems, pivots);
}

}  // namespace limbeck::kernels
