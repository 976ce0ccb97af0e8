// The operations of divergence_formula.h and logit_formula.h on a float or double, on the host and in a .cu.
#pragma once
#include <cmath>

#include "kernels/head_loss/divergence_formula.h"

namespace limbeck::kernels {

template <class T>
struct NumberOps {
  using Value = T;
  using Number = T;

  static LIMBECK_FORMULA T splat(T x) { return x; }
  static LIMBECK_FORMULA T tanh_of(T x) { return hyperbolic_tangent(x); }
  static LIMBECK_FORMULA T exp_of_nonpositive(T x) { return exponential(x); }
  static LIMBECK_FORMULA bool far(T d) { return size(d) > T(0.5); }
  static LIMBECK_FORMULA bool above(T x, T number) { return x > number; }
  static LIMBECK_FORMULA bool any(bool mask) { return mask; }
  static LIMBECK_FORMULA T either(bool mask, T a, T b) { return mask ? a : b; }
  static LIMBECK_FORMULA T size(T x) { return x < T(0) ? -x : x; }
  static LIMBECK_FORMULA T sign(T x) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : x; }
  static LIMBECK_FORMULA T less_one(T x) { return minus_one(x > T(80) ? T(80) : x); }
  static LIMBECK_FORMULA T less_one_near(T d) { return minus_one(d); }
  static LIMBECK_FORMULA T excess(T d) { return nonnegative(minus_one(d) - d); }
  static LIMBECK_FORMULA T log_of_one_plus(T y, T* rest) {
    const T log = logarithm(y);
    *rest = nonnegative(y - log);
    return log;
  }

 private:
  static LIMBECK_FORMULA T nonnegative(T x) { return x < T(0) ? T(0) : x; }  // NaN stays
  static LIMBECK_FORMULA float hyperbolic_tangent(float x) { return ::tanhf(x); }
  static LIMBECK_FORMULA double hyperbolic_tangent(double x) { return ::tanh(x); }
  static LIMBECK_FORMULA float exponential(float x) { return ::expf(x); }
  static LIMBECK_FORMULA double exponential(double x) { return ::exp(x); }
  static LIMBECK_FORMULA float minus_one(float x) { return ::expm1f(x); }
  static LIMBECK_FORMULA double minus_one(double x) { return ::expm1(x); }
  static LIMBECK_FORMULA float logarithm(float y) { return ::log1pf(y); }
  static LIMBECK_FORMULA double logarithm(double y) { return ::log1p(y); }
};

}  // namespace limbeck::kernels
