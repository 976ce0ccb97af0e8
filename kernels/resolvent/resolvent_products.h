// Products of the recurrences' steps over a run of positions: what a run makes of whatever comes into it, known before
// that is. Associative, so that runs are computed side by side; by these a GPU divides a row among its thread blocks.
#pragma once
#include <cmath>
#include <cstring>

#include "kernels/resolvent/resolvent_formula.h"

namespace limbeck::kernels {

LIMBECK_FORMULA Complex<double> sum_of(Complex<double> x, Complex<double> y) { return {x.re + y.re, x.im + y.im}; }

// The power of two that brings `size` to [1, 2); 1 of what is not finite.
LIMBECK_FORMULA double unit_scale(double size) {
  uint64_t bits = 0;
  std::memcpy(&bits, &size, sizeof(bits));
  const uint64_t exponent = bits >> 52 & 0x7ff, nearest = exponent < 2045 ? exponent : 2045;
  const uint64_t scale = exponent == 0x7ff ? uint64_t{1023} << 52 : (2046 - nearest) << 52;
  double power = 0.0;
  std::memcpy(&power, &scale, sizeof(power));
  return power;
}

LIMBECK_FORMULA double larger_of(double x, double y) { return x > y ? x : y; }
LIMBECK_FORMULA double size_of_pair(Complex<double> x) { return larger_of(std::fabs(x.re), std::fabs(x.im)); }
LIMBECK_FORMULA Complex<double> scaled(Complex<double> x, double by) { return {x.re * by, x.im * by}; }

// g -> (over_in g + over) / (under_in g + under), the product of the matrices (0, 1; -p, a - z). Only ratios matter, so
// each factor brings its largest element to a size of 1, exactly: determinants of any length neither overflow nor
// vanish. `is_cut`: a coupling of zero is between, and what comes in matters no more, not even a NaN.
struct GreenProduct {
  Complex<double> over_in, under_in, over, under;
  int64_t is_cut;
};
LIMBECK_FORMULA GreenProduct no_green_step() { return {{1.0, 0.0}, {0.0, 0.0}, {0.0, 0.0}, {1.0, 0.0}, 0}; }

LIMBECK_FORMULA void bring_to_one(GreenProduct& m) {
  const double size = larger_of(larger_of(size_of_pair(m.over_in), size_of_pair(m.under_in)),
                                larger_of(size_of_pair(m.over), size_of_pair(m.under)));
  const double by = unit_scale(size);
  m.over_in = scaled(m.over_in, by);
  m.under_in = scaled(m.under_in, by);
  m.over = scaled(m.over, by);
  m.under = scaled(m.under, by);
}

// d over - p over_before, of one column.
LIMBECK_FORMULA Complex<double> next_determinant(Complex<double> d, double p, Complex<double> over,
                                                 Complex<double> under) {
  const Complex<double> whole = product_of(d, under);
  return {whole.re - p * over.re, whole.im - p * over.im};
}

// One position more: green_step behind m.
LIMBECK_FORMULA void extend(GreenProduct& m, double real, double p, double height) {
  const Complex<double> d{real, -height};
  if (p == 0.0) {
    m = {{0.0, 0.0}, {0.0, 0.0}, {1.0, 0.0}, d, 1};
  } else {
    const Complex<double> in = next_determinant(d, p, m.over_in, m.under_in),
                          alone = next_determinant(d, p, m.over, m.under);
    m.over_in = m.under_in;
    m.under_in = in;
    m.over = m.under;
    m.under = alone;
  }
  bring_to_one(m);
}

// first, then second.
LIMBECK_FORMULA GreenProduct joined(const GreenProduct& first, const GreenProduct& second) {
  if (second.is_cut != 0) return second;
  GreenProduct m;
  m.over_in = sum_of(product_of(second.over_in, first.over_in), product_of(second.over, first.under_in));
  m.under_in = sum_of(product_of(second.under_in, first.over_in), product_of(second.under, first.under_in));
  m.over = sum_of(product_of(second.over_in, first.over), product_of(second.over, first.under));
  m.under = sum_of(product_of(second.under_in, first.over), product_of(second.under, first.under));
  m.is_cut = first.is_cut;
  bring_to_one(m);
  return m;
}

LIMBECK_FORMULA Complex<double> applied(const GreenProduct& m, Complex<double> g) {
  if (m.is_cut != 0) return product_of(m.over, inverse(m.under));
  return product_of(sum_of(product_of(m.over_in, g), m.over), inverse(sum_of(product_of(m.under_in, g), m.under)));
}

// s -> 2^exponent factor s + sum. Factors have a size of 1, so that those of any length neither overflow nor vanish:
// those of sums of gradients, p g^2, do not grow where b c >= 0, those of an elimination may, by c / b a position.
struct SumProduct {
  Complex<double> factor, sum;
  int64_t exponent, is_cut;
};
LIMBECK_FORMULA SumProduct no_sum_step() { return {{1.0, 0.0}, {0.0, 0.0}, 0, 0}; }

LIMBECK_FORMULA void bring_to_one(SumProduct& m) {
  const double size = size_of_pair(m.factor), by = unit_scale(size);
  m.factor = scaled(m.factor, by);
  if (size != 0.0) m.exponent -= std::ilogb(by);
}

// One position more, which takes `factor` of what comes into it, and makes `sum` of m's own.
LIMBECK_FORMULA void extend(SumProduct& m, Complex<double> factor, Complex<double> sum) {
  m.sum = sum;
  m.factor = product_of(factor, m.factor);
  bring_to_one(m);
}

LIMBECK_FORMULA Complex<double> applied(const SumProduct& m, Complex<double> s) {
  if (m.is_cut != 0) return m.sum;
  constexpr int64_t kMost = 4096;  // from the least number to the largest and back
  const int by = static_cast<int>(m.exponent < -kMost ? -kMost : m.exponent > kMost ? kMost : m.exponent);
  const Complex<double> taken = product_of(m.factor, s);
  return sum_of({std::ldexp(taken.re, by), std::ldexp(taken.im, by)}, m.sum);
}

LIMBECK_FORMULA SumProduct joined(const SumProduct& first, const SumProduct& second) {
  if (second.is_cut != 0) return second;
  SumProduct m{product_of(second.factor, first.factor), applied(second, first.sum), first.exponent + second.exponent,
               first.is_cut};
  bring_to_one(m);
  return m;
}

}  // namespace limbeck::kernels
