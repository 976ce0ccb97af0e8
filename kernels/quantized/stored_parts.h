// How the CPU puts chosen codes and scales into the parts of a quantized matrix, for whoever chooses them.
#pragma once
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/quantized/quantized_matrix.h"

namespace limbeck::kernels {

// The scale in the dtype S that it is stored in, no less than the exact one.
template <class S>
S rounded_up(float exact) {
  S scale = static_cast<S>(exact);
  if constexpr (sizeof(S) == 2) {
    if (static_cast<float>(scale) < exact) ++scale.x;
  }
  return scale;
}

inline constexpr float kSmallestScale = 1e-38F;  // bitsandbytes divides by no less

// value / scale within ±1, of nf4: in whole blocks as a product with the reciprocal, in a shorter last one as a
// quotient, which is what bitsandbytes computes.
struct Scaled {
  Scaled(float largest, bool whole_block)
      : scale(whole_block ? largest : std::max(largest, kSmallestScale)),
        reciprocal(1.0F / std::max(largest, kSmallestScale)),
        whole(whole_block) {}
  float operator()(float value) const { return std::clamp(whole ? value * reciprocal : value / scale, -1.0F, 1.0F); }
  float scale, reciprocal;
  bool whole;
};

inline float largest_magnitude(const float* w, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(w[i]));
  return largest;
}

template <size_t N>
std::array<float, N - 1> middles_of(const std::array<float, N>& levels) {
  std::array<float, N - 1> middles{};
  for (size_t i = 0; i + 1 < N; ++i) middles[i] = (levels[i] + levels[i + 1]) / 2.0F;
  return middles;
}

// Codes [rows, columns], a byte each, into a part that holds zeros; each byte of it by one thread.
void store_codes(const QuantizedFormat& format, const uint8_t* codes, int64_t rows, int64_t columns,
                 at::Tensor& stored);
// And of one row [columns] back.
void load_codes(const QuantizedView& v, int64_t row, uint8_t* codes);
// Of nf4-double: the scales of its blocks, float32, into its parts but the codes.
void store_double_scales(const at::Tensor& exact, std::vector<at::Tensor>& parts);

}  // namespace limbeck::kernels
