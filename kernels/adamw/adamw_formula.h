// The AdamW update of one element, once for CPU (V = 16 lanes) and CUDA (V = float or double). V offers arithmetic, an
// explicit constructor from a constant, and square_root().
#pragma once

#include "kernels/operator/formula.h"

namespace limbeck::kernels {

// What is the same for all elements, computed once in float64.
struct AdamWFactors {
  double gradient_scale;
  double kept;                        // 1 - learning rate * weight decay
  double new_first, old_second;       // 1 - beta1, beta2
  double new_second;                  // 1 - beta2
  double inverse_root_of_correction;  // 1 / sqrt(1 - beta2^step)
  double step_size;                   // learning rate / (1 - beta1^step)
  double epsilon;
};

template <class V>
struct AdamWVectors {
  V gradient_scale, kept, new_first, old_second, new_second, inverse_root_of_correction, step_size, epsilon;
  LIMBECK_FORMULA explicit AdamWVectors(const AdamWFactors& f)
      : gradient_scale(f.gradient_scale),
        kept(f.kept),
        new_first(f.new_first),
        old_second(f.old_second),
        new_second(f.new_second),
        inverse_root_of_correction(f.inverse_root_of_correction),
        step_size(f.step_size),
        epsilon(f.epsilon) {}
};

template <class V>
LIMBECK_FORMULA void adamw_update(const AdamWVectors<V>& f, const V& gradient, V& weight, V& first, V& second) {
  const V g = gradient * f.gradient_scale;
  first = first + f.new_first * (g - first);
  second = second * f.old_second + f.new_second * g * g;
  const V denominator = square_root(second) * f.inverse_root_of_correction + f.epsilon;
  weight = weight * f.kept - f.step_size * first / denominator;
}

}  // namespace limbeck::kernels
