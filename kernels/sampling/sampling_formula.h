// What both devices compute of a logit, and the number that a row draws.
#pragma once
#include <cstdint>

#include "kernels/operator/formula.h"
#include "kernels/random/counter_bits.h"

namespace limbeck::kernels {

// 32 random bits n; they stand for the number (n + 1/2) / 2^32.
LIMBECK_FORMULA uint32_t drawn_bits(uint64_t seed, uint64_t row, uint64_t step) {
  return static_cast<uint32_t>(counter_bits(counter_bits(mixed(seed + kGolden), row), step) >> 32);
}

LIMBECK_FORMULA bool is_finite(double logit) { return logit - logit == 0; }

// A logit that need not be finite, as one that is; `largest` is the largest of its dtype.
LIMBECK_FORMULA double tamed(double logit, double largest) {
  if (!(logit >= -largest)) return -largest;
  return logit > largest ? largest : logit;
}

// How far below the greatest, in units of the temperature: 0 or more, and in the order of sampling. First the
// difference: beside a temperature near zero any other than the greatest is infinitely far below it.
LIMBECK_FORMULA double depth_of(double greatest, double logit, double temperature) {
  return (greatest - logit) / temperature;
}

}  // namespace limbeck::kernels
