// One position of the resolvent, once for both devices: the steps of its recurrences, what both Green functions give,
// and the gradients. Complex numbers are pairs; a Number is a double, or sixteen of the CPU's side by side, for which
// the CPU overloads over_coupling and where_below. A matrix M has a, b, c, documents, state, their rows, n and point().
#pragma once
#include <cstdint>
#include <limits>

#include "kernels/operator/formula.h"

namespace limbeck::kernels {

// A number of one chain or of sixteen: the same operations, so on the CPU the same bits.
template <class Number>
struct Complex {
  Number re, im;
};

// What neighbours hand over; nothing across p = 0, not even a NaN or a sign of zero, so that a document is alone.
LIMBECK_FORMULA double over_coupling(double p, double value) { return p != 0.0 ? value : 0.0; }

// limit > size ? then : otherwise; of a NaN size `otherwise`.
LIMBECK_FORMULA double where_below(double size, double limit, double then, double otherwise) {
  return size < limit ? then : otherwise;
}

// 1 / d. Where b c < 0 a leading matrix may be singular at z, and d zero while the whole has an inverse: 2^-400 in its
// place leaves in what follows 1 / (x - p 2^400) = 0 to the last bit, which is the limit, and its square has a number.
template <class Number>
LIMBECK_FORMULA Complex<Number> inverse(Complex<Number> d) {
  constexpr double kLeast = 0x1p-800, kRoot = 0x1p-400;
  const Number size = d.re * d.re + d.im * d.im;
  d.re = where_below(size, kLeast, kRoot, d.re);
  d.im = where_below(size, kLeast, 0.0, d.im);
  const Number scale = Number(1.0) / where_below(size, kLeast, kLeast, size);
  return {d.re * scale, -d.im * scale};
}

LIMBECK_FORMULA Complex<double> pair_at(const double* pairs, int64_t index) {
  return {pairs[2 * index], pairs[2 * index + 1]};
}
template <class T>
LIMBECK_FORMULA void put_pair(T* pairs, int64_t index, Complex<double> value) {
  pairs[2 * index] = static_cast<T>(value.re);
  pairs[2 * index + 1] = static_cast<T>(value.im);
}
LIMBECK_FORMULA const double* row_of(const double* pairs, int64_t row, int64_t n) {
  return pairs == nullptr ? nullptr : pairs + 2 * row * n;
}
// z, or NaN where z is not finite or not above the real line. For devices, whose host cannot see it without waiting.
LIMBECK_FORMULA Complex<double> point_above(Complex<double> z) {
  const bool is_above = z.im > 0.0 && z.re - z.re == 0.0 && z.im - z.im == 0.0;  // x - x is NaN where x is not finite
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  return is_above ? z : Complex<double>{kNan, kNan};
}
LIMBECK_FORMULA double real_of_product(Complex<double> x, Complex<double> y) { return x.re * y.re - x.im * y.im; }
LIMBECK_FORMULA Complex<double> product_of(Complex<double> x, Complex<double> y) {
  return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
}

// b c of positions i - 1 and i, for 0 <= i <= n.
template <class T, class M>
LIMBECK_FORMULA double coupling(const M& m, int64_t row, int64_t i) {
  const int64_t at = m.state != nullptr ? i : i - 1;
  if (at < 0 || i == m.n) return 0.0;
  if (m.documents != nullptr && i > 0) {
    const int64_t* document = m.documents + row * m.documents_row;
    if (document[i] != document[i - 1]) return 0.0;
  }
  return static_cast<double>(static_cast<const T*>(m.b)[row * m.b_row + at]) *
         static_cast<double>(static_cast<const T*>(m.c)[row * m.c_row + at]);
}

template <class T, class M>
LIMBECK_FORMULA double diagonal_element(const M& m, int64_t row, int64_t i) {
  return static_cast<double>(static_cast<const T*>(m.a)[row * m.a_row + i]);
}

// ---- the recurrences ------------------------------------------------------------------------------------------------

// 1 / (real - i height - p before)
template <class Number>
LIMBECK_FORMULA Complex<Number> green_step(const Number& real, const Number& p, const Number& height,
                                           const Complex<Number>& before) {
  return inverse<Number>({real - over_coupling(p, p * before.re), -height - over_coupling(p, p * before.im)});
}

// p green^2
template <class Number>
LIMBECK_FORMULA Complex<Number> sum_factor(const Number& p, const Complex<Number>& green) {
  const Number &re = green.re, &im = green.im;
  const Number half_im = p * (re * im);
  return {p * (re * re - im * im), half_im + half_im};
}

// source + p green^2 before
template <class Number>
LIMBECK_FORMULA Complex<Number> sum_step(const Complex<Number>& source, const Number& p, const Complex<Number>& green,
                                         const Complex<Number>& before) {
  const Complex<Number> factor = sum_factor(p, green);
  return {source.re + over_coupling(p, factor.re * before.re - factor.im * before.im),
          source.im + over_coupling(p, factor.re * before.im + factor.im * before.re)};
}

// ---- what both Green functions give, position by position -----------------------------------------------------------

// `left` and `right` of this row.
template <class T, class M>
LIMBECK_FORMULA Complex<double> diagonal_at(const M& m, const double* left, const double* right, int64_t row,
                                            int64_t i) {
  if (right == nullptr) return pair_at(left, i);
  const Complex<double> z = m.template point<T>(row);
  Complex<double> d{diagonal_element<T>(m, row, i) - z.re, -z.im};
  if (const double p = coupling<T>(m, row, i); p != 0.0) {
    const Complex<double> before = pair_at(left, i - 1);
    d = {d.re - p * before.re, d.im - p * before.im};
  }
  if (const double p = coupling<T>(m, row, i + 1); p != 0.0) {
    const Complex<double> after = pair_at(right, i + 1);
    d = {d.re - p * after.re, d.im - p * after.im};
  }
  return inverse(d);
}

struct ResolventGradients {
  const void* grad;          // [rows, n, 2], storage
  const double* left;        // [rows, n, 2]
  const double* right;       // or null: causal
  double* source;            // [rows, n, 2]: grad times the square of the diagonal
  const double* left_sums;   // of `left`, a sweep from the right
  const double* right_sums;  // of `right`, a sweep from the left, or null
  void* grad_a;              // contiguous
  void* grad_b;
  void* grad_c;
  double* partial_z;  // [rows, runs of kGradientRun positions, 2]
};
inline constexpr int64_t kGradientRun = 2048;

// With w = dL/dRe - i dL/dIm the loss moves by Re(w dG), and dG by -G_ij G_ji d(diagonal j): the source at i = j is
// w G^2, and the sweeps add what comes from each side.
template <class T, class M>
LIMBECK_FORMULA void put_gradient_source(const M& m, const ResolventGradients& g, int64_t row, int64_t i) {
  const T* grad = static_cast<const T*>(g.grad) + 2 * (row * m.n + i);
  const Complex<double> d = diagonal_at<T>(m, row_of(g.left, row, m.n), row_of(g.right, row, m.n), row, i);
  const Complex<double> w{static_cast<double>(grad[0]), -static_cast<double>(grad[1])};
  const Complex<double> square{d.re * d.re - d.im * d.im, 2.0 * d.re * d.im};
  put_pair(g.source, row * m.n + i, {w.re * square.re - w.im * square.im, w.re * square.im + w.im * square.re});
}

// The gradients of a, b and c of a position. Returns what the conjugate of z's gets of it.
template <class T, class M>
LIMBECK_FORMULA Complex<double> put_gradients(const M& m, const ResolventGradients& g, int64_t row, int64_t i) {
  const double *left_sums = row_of(g.left_sums, row, m.n), *right_sums = row_of(g.right_sums, row, m.n),
               *right = row_of(g.right, row, m.n);
  const Complex<double> from_left = pair_at(left_sums, i);
  Complex<double> whole = from_left;
  if (right != nullptr) {  // both sums have the source
    const Complex<double> other = pair_at(right_sums, i), twice = pair_at(g.source, row * m.n + i);
    whole = {whole.re + (other.re - twice.re), whole.im + (other.im - twice.im)};
  }
  static_cast<T*>(g.grad_a)[row * m.n + i] = static_cast<T>(-whole.re);
  if (i == 0) return whole;
  const int64_t* document = m.documents == nullptr ? nullptr : m.documents + row * m.documents_row;
  double of_coupling = 0.0;
  if (document == nullptr || document[i] == document[i - 1]) {
    of_coupling = real_of_product(from_left, pair_at(g.left, row * m.n + i - 1));
    if (right != nullptr) of_coupling += real_of_product(pair_at(right_sums, i - 1), pair_at(right, i));
  }
  const int64_t at = row * (m.n - 1) + i - 1;
  const T b = static_cast<const T*>(m.b)[row * m.b_row + i - 1], c = static_cast<const T*>(m.c)[row * m.c_row + i - 1];
  static_cast<T*>(g.grad_b)[at] = static_cast<T>(of_coupling * static_cast<double>(c));
  static_cast<T*>(g.grad_c)[at] = static_cast<T>(of_coupling * static_cast<double>(b));
  return whole;
}

}  // namespace limbeck::kernels
