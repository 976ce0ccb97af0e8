// In the place of the CUDA toolkit's header: bfloat16 as our .cu files store it.
#pragma once
#include <cuda_runtime_api.h>

#include <bit>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

// To the nearest, ties to the even one; every NaN becomes the one of CUDA.
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (value != value) return {0x7fff};
  const auto bits = std::bit_cast<uint32_t>(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
