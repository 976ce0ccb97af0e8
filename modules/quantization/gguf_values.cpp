#include "modules/quantization/gguf_values.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstring>

namespace limbeck::quantization {
namespace {

using io::GgufType;

// Of a block of 32 and of one of 256 (ggml's QK_K).
constexpr int kSmall = 32, kLarge = 256;

float half(const uint8_t* bytes) {
  uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof bits);
  return c10::detail::fp16_ieee_to_fp32_value(bits);
}

void float32_value(const uint8_t* block, float* out) { std::memcpy(out, block, sizeof *out); }
void float16_value(const uint8_t* block, float* out) { *out = half(block); }
void bfloat16_value(const uint8_t* block, float* out) {
  uint16_t bits = 0;
  std::memcpy(&bits, block, sizeof bits);
  *out = c10::detail::f32_from_bits(bits);
}

// A nibble of a block of 32: the low ones of 16 bytes, then the high ones.
int nibble(const uint8_t* bytes, int i) { return bytes[i % 16] >> (i / 16 * 4) & 15; }

void q4_0(const uint8_t* block, float* out) {
  const float d = half(block);
  for (int i = 0; i < kSmall; ++i) out[i] = d * static_cast<float>(nibble(block + 2, i) - 8);
}

void q4_1(const uint8_t* block, float* out) {
  const float d = half(block), least = half(block + 2);
  for (int i = 0; i < kSmall; ++i) {
    const float product = d * static_cast<float>(nibble(block + 4, i));
    out[i] = product + least;
  }
}

// The fifth bit of the i-th code.
int fifth_bit(const uint8_t* bits, int i) { return (bits[i / 8] >> (i % 8) & 1) << 4; }

void q5_0(const uint8_t* block, float* out) {
  const float d = half(block);
  for (int i = 0; i < kSmall; ++i)
    out[i] = d * static_cast<float>((nibble(block + 6, i) | fifth_bit(block + 2, i)) - 16);
}

void q5_1(const uint8_t* block, float* out) {
  const float d = half(block), least = half(block + 2);
  for (int i = 0; i < kSmall; ++i) {
    const float product = d * static_cast<float>(nibble(block + 8, i) | fifth_bit(block + 4, i));
    out[i] = product + least;
  }
}

void q8_0(const uint8_t* block, float* out) {
  const float d = half(block);
  for (int i = 0; i < kSmall; ++i) out[i] = static_cast<float>(static_cast<int8_t>(block[2 + i])) * d;
}

// Two bits of a block of 256: 128 codes are in 32 bytes, by fours, 32 apart.
int two_bits(const uint8_t* bytes, int i) { return bytes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }

// 16 scales and 16 minima of 4 bits, 64 bytes of codes, d, dmin.
void q2_k(const uint8_t* block, float* out) {
  const uint8_t *scales = block, *codes = block + 16;
  const float d = half(block + 80), least = half(block + 82);
  for (int i = 0; i < kLarge; ++i) {
    const float scale = d * static_cast<float>(scales[i / 16] & 15);
    const float minimum = least * static_cast<float>(scales[i / 16] >> 4);
    const float product = scale * static_cast<float>(two_bits(codes, i));
    out[i] = product - minimum;
  }
}

// The scale of the i-th 16 values in 6 bits: four of them low in a byte, the other two beside those of three others.
int q3_k_scale(const uint8_t* packed, int i) {
  const int low = packed[i % 8] >> (i / 8 * 4) & 15;
  const int high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
  return (low | high << 4) - 32;
}

// 32 bytes with a bit of each code (clear: 4 less), 64 with two more, 12 of scales, d.
void q3_k(const uint8_t* block, float* out) {
  const uint8_t *high = block, *codes = block + 32, *scales = block + 96;
  const float d = half(block + 108);
  for (int i = 0; i < kLarge; ++i) {
    const float scale = d * static_cast<float>(q3_k_scale(scales, i / 16));
    const int above = high[i % 32] >> (i / 32) & 1;
    out[i] = scale * static_cast<float>(two_bits(codes, i) - (above != 0 ? 0 : 4));
  }
}

struct ScaleAndMinimum {
  int scale, minimum;
};
// Of the i-th 32 values, 6 bits each in 12 bytes.
ScaleAndMinimum sixes(const uint8_t* packed, int i) {
  const uint8_t *d = packed, *m = packed + 4, *both = packed + 8;
  if (i < 4) return {d[i] & 63, m[i] & 63};
  const int j = i - 4;
  return {(both[j] & 15) | (d[j] >> 2 & 48), both[j] >> 4 | (m[j] >> 2 & 48)};
}

// Four bits of a block of 256: 64 codes are in 32 bytes, the low halves first.
int four_bits(const uint8_t* bytes, int i) { return bytes[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15; }

void with_minima(const uint8_t* block, const uint8_t* codes, const uint8_t* high, float* out) {
  const float d = half(block), least = half(block + 2);
  for (int i = 0; i < kLarge; ++i) {
    const ScaleAndMinimum of = sixes(block + 4, i / 32);
    const int fifth = high == nullptr ? 0 : (high[i % 32] >> (i / 32) & 1) << 4;
    const float scale = d * static_cast<float>(of.scale), minimum = least * static_cast<float>(of.minimum);
    const float product = scale * static_cast<float>(four_bits(codes, i) | fifth);
    out[i] = product - minimum;
  }
}

void q4_k(const uint8_t* block, float* out) { with_minima(block, block + 16, nullptr, out); }
void q5_k(const uint8_t* block, float* out) { with_minima(block, block + 48, block + 16, out); }

// 128 bytes with four bits of each code, 64 with two more, 16 scales of 8 bits, d.
void q6_k(const uint8_t* block, float* out) {
  const uint8_t *low = block, *high = block + 128, *scales = block + 192;
  const float d = half(block + 208);
  for (int i = 0; i < kLarge; ++i) {
    const int lows = low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
    const float scale = d * static_cast<float>(static_cast<int8_t>(scales[i / 16]));
    out[i] = scale * static_cast<float>((lows | two_bits(high, i) << 4) - 32);
  }
}

using BlockValues = void (*)(const uint8_t*, float*);

BlockValues values_of(GgufType type) {
  switch (type) {
    case GgufType::kFloat16:
      return float16_value;
    case GgufType::kBFloat16:
      return bfloat16_value;
    case GgufType::kQ4_0:
      return q4_0;
    case GgufType::kQ4_1:
      return q4_1;
    case GgufType::kQ5_0:
      return q5_0;
    case GgufType::kQ5_1:
      return q5_1;
    case GgufType::kQ8_0:
      return q8_0;
    case GgufType::kQ2_K:
      return q2_k;
    case GgufType::kQ3_K:
      return q3_k;
    case GgufType::kQ4_K:
      return q4_k;
    case GgufType::kQ5_K:
      return q5_k;
    case GgufType::kQ6_K:
      return q6_k;
    case GgufType::kFloat32:
      break;
  }
  return float32_value;
}

}  // namespace

void gguf_values(GgufType type, const uint8_t* blocks, int64_t count, float* values) {
  const io::GgufTypeTraits& traits = io::traits_of(type);
  const BlockValues of_block = values_of(type);
  for (int64_t i = 0; i < count; ++i) of_block(blocks + i * traits.bytes, values + i * traits.values);
}

}  // namespace limbeck::quantization
