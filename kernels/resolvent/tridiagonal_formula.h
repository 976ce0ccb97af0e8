// One tridiagonal system, once for both devices: elimination without exchange of rows, position by position. A position
// makes its pivot (on CUDA that is the resolvent's Green function), then takes the one before off each column; what
// comes from behind is put in on the way back.
#pragma once
#include <cstdint>

#include "kernels/resolvent/resolvent_formula.h"

namespace limbeck::kernels {

// (T - z) x = rhs: n positions; rhs and x [n, columns] and pivots [n] are pairs. pivots: of 1 / pivot.
struct TridiagonalSystem {
  const double *a, *b, *c;
  Complex<double> z;
  int64_t n, columns;
  const double* rhs;
  double* x;
  double* pivots;

  // What position i takes of the one before: c over that one's pivot.
  LIMBECK_FORMULA Complex<double> factor(int64_t i) const {
    if (i == 0) return {0.0, 0.0};
    const Complex<double> before = pair_at(pivots, i - 1);
    return {c[i - 1] * before.re, c[i - 1] * before.im};
  }

  LIMBECK_FORMULA void make_pivot(int64_t i) const {
    Complex<double> d{a[i] - z.re, -z.im};
    if (i > 0) {
      const Complex<double> taken = factor(i);
      d = {d.re - b[i - 1] * taken.re, d.im - b[i - 1] * taken.im};
    }
    const double scale = 1.0 / (d.re * d.re + d.im * d.im);
    put_pair(pivots, i, {d.re * scale, -d.im * scale});
  }

  // The right side of a column where the one before has been taken off: `before` is that one's.
  LIMBECK_FORMULA Complex<double> eliminated(int64_t i, int64_t column, Complex<double> before) const {
    const Complex<double> y = pair_at(rhs, i * columns + column);
    if (i == 0) return y;
    const Complex<double> taken = product_of(factor(i), before);
    return {y.re - taken.re, y.im - taken.im};
  }
  // x of what was eliminated into x, and of the x behind it.
  LIMBECK_FORMULA Complex<double> solved(int64_t i, int64_t column, Complex<double> after) const {
    Complex<double> y = pair_at(x, i * columns + column);
    if (i + 1 < n) y = {y.re - b[i] * after.re, y.im - b[i] * after.im};
    return product_of(pair_at(pivots, i), y);
  }
};

// Those of all rows, each without gaps.
struct TridiagonalSystems {
  const double *a, *b, *c, *z;
  int64_t rows, n, columns;
  const double* rhs;
  double* x;

  LIMBECK_FORMULA TridiagonalSystem at(int64_t row, Complex<double> point, double* pivots) const {
    const int64_t first = 2 * row * n * columns;
    return {a + row * n, b + row * (n - 1), c + row * (n - 1), point, n, columns, rhs + first, x + first, pivots};
  }
};

}  // namespace limbeck::kernels
