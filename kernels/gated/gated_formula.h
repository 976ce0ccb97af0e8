// act(gate) * up and its derivatives, once for CPU (V = 16 lanes) and CUDA (V = float or double). V offers arithmetic,
// an explicit constructor from a constant, and the functions clamp_keeping_nan, minus_magnitude, exp_of_nonpositive,
// reciprocal_of_one_plus and where_nonnegative. Both activations are gate * sigmoid(inner(gate)).
#pragma once

#include "kernels/operator/formula.h"

namespace limbeck::kernels {

struct Silu {
  template <class V>
  static LIMBECK_FORMULA V inner(const V& gate) {
    return gate;
  }
  template <class V>
  static LIMBECK_FORMULA V inner_slope(const V&) {
    return V(1.0);
  }
};

// gelu_tanh(x) = x/2 (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
struct GeluTanh {
  static constexpr double kLinear = 1.5957691216057308;  // 2 sqrt(2/pi)
  static constexpr double kCubic = kLinear * 0.044715;
  // Past 24 the sigmoid is 0 or 1 in every dtype (2u > 1000), while the cube of a large gate would overflow.
  static constexpr double kEdge = 24.0;

  template <class V>
  static LIMBECK_FORMULA V inner(const V& gate) {
    const V x = clamp_keeping_nan(gate, -kEdge, kEdge);
    return x * (V(kLinear) + V(kCubic) * (x * x));
  }
  template <class V>
  static LIMBECK_FORMULA V inner_slope(const V& gate) {
    const V x = clamp_keeping_nan(gate, -kEdge, kEdge);
    return V(kLinear) + V(3.0 * kCubic) * (x * x);
  }
};

// sigmoid(k) and 1 - sigmoid(k) without cancellation or overflow: exp takes -|k| alone.
template <class V>
struct Sigmoid {
  V value;
  V complement;
};
template <class V>
LIMBECK_FORMULA Sigmoid<V> sigmoid_of(const V& k) {
  const V decay = exp_of_nonpositive(minus_magnitude(k));
  const V large = reciprocal_of_one_plus(decay);
  const V small = decay * large;
  return {where_nonnegative(k, large, small), where_nonnegative(k, small, large)};
}

template <class Activation, class V>
LIMBECK_FORMULA V gated_forward(const V& gate, const V& up) {
  return gate * sigmoid_of(Activation::inner(gate)).value * up;
}

template <class V>
struct GatedGradients {
  V gate;
  V up;
};
template <class Activation, class V>
LIMBECK_FORMULA GatedGradients<V> gated_backward(const V& grad, const V& gate, const V& up) {
  const Sigmoid<V> sigmoid = sigmoid_of(Activation::inner(gate));
  const V activation = gate * sigmoid.value;
  const V slope = sigmoid.value + activation * sigmoid.complement * Activation::inner_slope(gate);
  return {grad * up * slope, grad * activation};
}

}  // namespace limbeck::kernels
