#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/resolvent/tridiagonal_solve.h"
#include "kernels/resolvent/tridiagonal_systems.h"

namespace limbeck::kernels {
namespace {

void solve_all_columns(const TridiagonalSystem& system) {
  const auto x_at = [&](int64_t i, int64_t k) {
    return i < 0 || i == system.n ? Complex<double>{} : pair_at(system.x, i * system.columns + k);
  };
  const auto put = [&](int64_t i, int64_t k, Complex<double> x) { put_pair(system.x, i * system.columns + k, x); };
  for (int64_t i = 0; i < system.n; ++i) {
    system.make_pivot(i);
    for (int64_t k = 0; k < system.columns; ++k) put(i, k, system.eliminated(i, k, x_at(i - 1, k)));
  }
  for (int64_t i = system.n - 1; i >= 0; --i) {
    for (int64_t k = 0; k < system.columns; ++k) put(i, k, system.solved(i, k, x_at(i + 1, k)));
  }
}

at::Tensor solve_on_cpu(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                        const at::Tensor& rhs) {
  const at::Tensor out = tridiagonal_solve_output(a, b, c, z, rhs);
  const DenseSystems dense(a, b, c, z, rhs);
  const TridiagonalSystems systems = dense.into(out);
  for (int64_t row = 0; row < systems.rows; ++row) {
    const double re = systems.z[2 * row], im = systems.z[2 * row + 1];
    TORCH_CHECK(std::isfinite(re) && std::isfinite(im) && im > 0, "[tridiagonal_solve] z of row ", row, " is ", re,
                " + ", im, "i, wanted a finite number with Im z > 0");
  }
  at::parallel_for(0, systems.rows, items_per_task(systems.n * systems.columns), [&](int64_t begin, int64_t end) {
    std::vector<double> pivots(static_cast<size_t>(2 * systems.n));
    for (int64_t row = begin; row < end; ++row)
      solve_all_columns(systems.at(row, pair_at(systems.z, row), pivots.data()));
  });
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("tridiagonal_solve", solve_on_cpu); }

}  // namespace
}  // namespace limbeck::kernels
