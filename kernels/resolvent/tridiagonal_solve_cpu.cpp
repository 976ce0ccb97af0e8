#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/resolvent/tridiagonal_solve.h"

namespace limbeck::kernels {
namespace {

struct PairOf64 {
  double re, im;
};

PairOf64 times(PairOf64 x, PairOf64 y) { return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re}; }

// One row of n positions; x and rhs [n, r] pairs. pivots: room for n.
struct TridiagonalSystem {
  const double *a, *b, *c, *z;
  int64_t n, columns;
  const PairOf64* rhs;
  PairOf64* x;

  void solve(std::vector<PairOf64>& pivots) const {
    for (int64_t i = 0; i < n; ++i) {
      PairOf64 d{a[i] - z[0], -z[1]}, factor{0, 0};
      if (i > 0) {
        factor = {c[i - 1] * pivots[i - 1].re, c[i - 1] * pivots[i - 1].im};
        d = {d.re - b[i - 1] * factor.re, d.im - b[i - 1] * factor.im};
      }
      const double scale = 1.0 / (d.re * d.re + d.im * d.im);
      pivots[i] = {d.re * scale, -d.im * scale};
      for (int64_t k = 0; k < columns; ++k) {
        PairOf64 y = rhs[i * columns + k];
        if (i > 0) {
          const PairOf64 before = times(factor, x[(i - 1) * columns + k]);
          y = {y.re - before.re, y.im - before.im};
        }
        x[i * columns + k] = y;
      }
    }
    for (int64_t i = n - 1; i >= 0; --i) {
      for (int64_t k = 0; k < columns; ++k) {
        PairOf64 y = x[i * columns + k];
        if (i + 1 < n) {
          const PairOf64 after = x[(i + 1) * columns + k];
          y = {y.re - b[i] * after.re, y.im - b[i] * after.im};
        }
        x[i * columns + k] = times(pivots[i], y);
      }
    }
  }
};

at::Tensor solve_on_cpu(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, const at::Tensor& z,
                        const at::Tensor& rhs) {
  const at::Tensor out = tridiagonal_solve_output(a, b, c, z, rhs);
  const int64_t n = a.size(-1), rows = a.numel() / n, columns = rhs.size(-2);
  const at::Tensor diagonal = a.contiguous(), above = b.contiguous(), below = c.contiguous();
  const at::Tensor points = z.contiguous(), right = rhs.contiguous();
  const auto *a0 = diagonal.const_data_ptr<double>(), *b0 = above.const_data_ptr<double>(),
             *c0 = below.const_data_ptr<double>(), *z0 = points.const_data_ptr<double>();
  const auto* rhs0 = reinterpret_cast<const PairOf64*>(right.const_data_ptr<double>());
  auto* x0 = reinterpret_cast<PairOf64*>(out.mutable_data_ptr<double>());
  for (int64_t row = 0; row < rows; ++row) {
    const double re = z0[2 * row], im = z0[2 * row + 1];
    TORCH_CHECK(std::isfinite(re) && std::isfinite(im) && im > 0, "[tridiagonal_solve] z of row ", row, " is ", re,
                " + ", im, "i, wanted a finite number with Im z > 0");
  }
  at::parallel_for(0, rows, items_per_task(n * columns), [&](int64_t begin, int64_t end) {
    std::vector<PairOf64> pivots(n);
    for (int64_t row = begin; row < end; ++row) {
      const TridiagonalSystem system{a0 + row * n, b0 + row * (n - 1),       c0 + row * (n - 1),    z0 + 2 * row, n,
                                     columns,      rhs0 + row * n * columns, x0 + row * n * columns};
      system.solve(pivots);
    }
  });
  return out;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("tridiagonal_solve", solve_on_cpu); }

}  // namespace
}  // namespace limbeck::kernels
