// Random bits by counter: a function of a key and a number, with no state that calls, threads or devices could share.
// Once for CPU and CUDA; includes no torch header.
#pragma once
#include <cstdint>

#include "kernels/operator/formula.h"

namespace limbeck::kernels {

inline constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

// The finaliser of SplitMix64: every bit of the result depends on every bit of `x`.
LIMBECK_FORMULA uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

LIMBECK_FORMULA uint64_t counter_bits(uint64_t key, uint64_t counter) { return mixed(key + counter * kGolden); }

}  // namespace limbeck::kernels
