// What codes stand for, once for the loops of the CPU and for CUDA (quantized.cu): the levels, which scale a value has,
// and the value. float32, every product and sum rounded by itself, so that both devices have the same bits. No torch.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/operator/formula.h"
#include "kernels/operator/rounded_up.h"
#include "kernels/operator/storage.h"
#include "kernels/quantized/short_codes.h"

namespace limbeck::kernels {

// kInt4: whole numbers of at most 4 bits, in words (short_codes.h); int2 and int3 are of this kind too, and what reads
// nibbles where they lie must ask for 4 bits first.
enum class CodeKind { kInt8, kInt4, kNf4 };

// A value, so that a loop can ask for its traits, and a new group is a row of a table (quantized_matrix.cpp).
struct QuantizedFormat {
  CodeKind kind = CodeKind::kInt8;
  int bits = 8;                // of a code; of kInt4 2, 3 or 4
  int group_shift = 0;         // neighbours of a row with one scale, as a power of 2; 0 (int8): the whole row
  bool has_zeros = false;      // kInt4: a code of its own for 0 in each group, instead of the middle one in all
  bool double_scales = false;  // nf4: scales in 8 bits
  bool dynamic = false;        // int8, int4: rows of x are in 8 bits too where they meet it in a product

  LIMBECK_FORMULA bool has_groups() const { return group_shift > 0; }
  LIMBECK_FORMULA int64_t group() const { return int64_t{1} << group_shift; }
  // Codes of kInt4 are unsigned: the last one, and the one that stands for 0 where there are no zeros.
  LIMBECK_FORMULA int last_code() const { return (1 << bits) - 1; }
  LIMBECK_FORMULA int middle_code() const { return 1 << (bits - 1); }
  friend bool operator==(const QuantizedFormat& a, const QuantizedFormat& b) {
    return a.kind == b.kind && a.bits == b.bits && a.group_shift == b.group_shift && a.has_zeros == b.has_zeros &&
           a.double_scales == b.double_scales && a.dynamic == b.dynamic;
  }
  friend bool operator!=(const QuantizedFormat& a, const QuantizedFormat& b) { return !(a == b); }

  static const QuantizedFormat kInt8, kInt8Dynamic, kInt4, kNf4, kNf4Double;
};
inline constexpr QuantizedFormat QuantizedFormat::kInt8{CodeKind::kInt8};
inline constexpr QuantizedFormat QuantizedFormat::kInt8Dynamic{CodeKind::kInt8, 8, 0, false, false, /*dynamic=*/true};
inline constexpr QuantizedFormat QuantizedFormat::kInt4{CodeKind::kInt4, 4, 7, /*has_zeros=*/true};
inline constexpr QuantizedFormat QuantizedFormat::kNf4{CodeKind::kNf4, 4};
inline constexpr QuantizedFormat QuantizedFormat::kNf4Double{CodeKind::kNf4, 4, 0, false, /*double_scales=*/true};

inline constexpr int64_t kSmallestGroup = 32, kLargestGroup = 128, kNf4Block = 64, kScaleBlock = 256;
// Of 4 bits.
inline constexpr int kMiddleCode = 8;
// 4-bit codes, and zeros, in a word of int4.
inline constexpr int64_t kWordCodes = 8;

// The 16 levels of nf4, ascending.
inline constexpr std::array<float, 16> kNf4Levels = {
    -1.0F,         -0.696192801F, -0.525073051F, -0.394917488F, -0.284441382F, -0.18477343F, -0.0910500363F, 0.0F,
    0.0795802996F, 0.160930201F,  0.246112302F,  0.337915242F,  0.440709829F,  0.562617004F, 0.722956836F,   1.0F};

// Levels are the middles between k + 1 evenly spaced points from 0.1 to 1, k = 1, 2, 4, … 64, each decade ten times the
// one below, both signs; and 0 and 1.
constexpr std::array<float, 256> made_dynamic_levels() {
  constexpr std::array<float, 7> kDecades = {1e-6F, 1e-5F, 1e-4F, 1e-3F, 1e-2F, 1e-1F, 1.0F};
  constexpr size_t kZero = 127;
  std::array<float, 256> all{};
  all[255] = 1.0F;
  size_t next = 1;
  for (size_t decade = 0; decade < kDecades.size(); ++decade) {
    const int count = 1 << decade;
    const float low = 0.1F, high = 1.0F, step = (high - low) / static_cast<float>(count);
    for (int i = 0; i < count; ++i, ++next) {
      float points[2] = {};
      for (int end = 0; end < 2; ++end) {
        // From the nearer end, rounded once: what torch.linspace gives.
        const int at = i + end;
        const double from_low = static_cast<double>(low) + static_cast<double>(step) * at;
        const double from_high = static_cast<double>(high) - static_cast<double>(step) * (count - at);
        points[end] = static_cast<float>(at < (count + 1) / 2 ? from_low : from_high);
      }
      const float level = kDecades[decade] * ((points[0] + points[1]) / 2.0F);
      all[kZero + next] = level;
      all[kZero - next] = -level;
    }
  }
  return all;
}
// The 256 levels of the dynamic map, ascending: 7 decades, each with twice the levels of the one below.
inline constexpr std::array<float, 256> kDynamicLevels = made_dynamic_levels();

// A quantized matrix without tensors: pointers to its parts, all on one device.
struct QuantizedView {
  QuantizedFormat format;
  int64_t rows, columns;
  const void* codes;
  const void* scales;
  Storage scale_storage;       // not float64
  const uint32_t* zeros;       // kInt4 with zeros: codes in words down the rows, those of a group below each other
  const uint8_t* scale_codes;  // nf4-double
  const float* offset;         // nf4-double: one number
};

struct ValueScale {
  float scale, zero;
};

LIMBECK_FORMULA float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

LIMBECK_FORMULA float stored_scale(const QuantizedView& v, int64_t index) {
  if (v.scale_storage == Storage::kFloat32) return static_cast<const float*>(v.scales)[index];
  const uint32_t bits = static_cast<const uint16_t*>(v.scales)[index];
  if (v.scale_storage == Storage::kBFloat16) return float_of_bits(bits << 16);
  // float16: its exponent is 112 less than float32 has for the same power of two; of infinity and NaN it is full.
  const uint32_t body = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
  if (body >= 0x7c00u << 13) return float_of_bits(sign | 0x70000000u | body);
  return float_of_bits(sign | 0x77800000u) * float_of_bits(body);
}

// nvcc would fuse a product with the sum that takes it.
LIMBECK_FORMULA float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// Scales of a row in groups.
LIMBECK_FORMULA int64_t groups_of(const QuantizedView& v) {
  return (v.columns + v.format.group() - 1) >> v.format.group_shift;
}

LIMBECK_FORMULA int64_t end_of_group(const QuantizedView& v, int64_t column) {
  return ((column >> v.format.group_shift) + 1) << v.format.group_shift;
}

// `dynamic`: the levels of the dynamic map, wherever the device keeps them.
template <CodeKind kind>
LIMBECK_FORMULA ValueScale scale_at(const QuantizedView& v, int64_t row, int64_t column, const float* dynamic) {
  if constexpr (kind == CodeKind::kInt8) {
    if (!v.format.has_groups()) return {stored_scale(v, row), 0.0F};
    return {stored_scale(v, row * groups_of(v) + (column >> v.format.group_shift)), 0.0F};
  } else if constexpr (kind == CodeKind::kInt4) {
    const int64_t groups = groups_of(v), group = column >> v.format.group_shift;
    const float scale = stored_scale(v, row * groups + group);
    if (v.zeros == nullptr) return {scale, static_cast<float>(v.format.middle_code())};
    return {scale, static_cast<float>(code_in_words(v.zeros + group, groups, v.format.bits, row))};
  } else {
    const int64_t block = (row * v.columns + column) / kNf4Block;
    const auto* scales = static_cast<const float*>(v.scales);
    if (v.scale_codes == nullptr) return {scales[block], 0.0F};
    return {rounded_product(dynamic[v.scale_codes[block]], scales[block / kScaleBlock]) + *v.offset, 0.0F};
  }
}

// The column behind the last one with the scale of `column`; it may lie beyond the row.
template <CodeKind kind>
LIMBECK_FORMULA int64_t end_of_scale(const QuantizedView& v, int64_t row, int64_t column) {
  if constexpr (kind == CodeKind::kInt8) {
    return v.format.has_groups() ? end_of_group(v, column) : v.columns;
  } else if constexpr (kind == CodeKind::kInt4) {
    return end_of_group(v, column);
  } else {
    const int64_t value = row * v.columns + column;
    return column + kNf4Block - value % kNf4Block;
  }
}

// Of kInt4: the words of a row.
LIMBECK_FORMULA int64_t words_of_row(const QuantizedView& v) { return words_of_codes(v.format.bits, v.columns); }
LIMBECK_FORMULA const uint32_t* row_words(const QuantizedView& v, int64_t row) {
  return static_cast<const uint32_t*>(v.codes) + row * words_of_row(v);
}

template <CodeKind kind>
LIMBECK_FORMULA int code_at(const QuantizedView& v, int64_t row, int64_t column) {
  if constexpr (kind == CodeKind::kInt8) {
    return static_cast<const int8_t*>(v.codes)[row * v.columns + column];
  } else if constexpr (kind == CodeKind::kInt4) {
    return static_cast<int>(code_in_words(row_words(v, row), 1, v.format.bits, column));
  } else {
    const int64_t index = row * v.columns + column;
    const uint8_t pair = static_cast<const uint8_t*>(v.codes)[index / 2];
    return index % 2 == 0 ? pair >> 4 : pair & 15;
  }
}

// `levels`: those of nf4.
template <CodeKind kind>
LIMBECK_FORMULA float value_of(int code, const ValueScale& s, const float* levels) {
  if constexpr (kind == CodeKind::kInt8) {
    return rounded_product(static_cast<float>(code), s.scale);
  } else if constexpr (kind == CodeKind::kInt4) {
    return rounded_product(static_cast<float>(code) - s.zero, s.scale);
  } else {
    return rounded_product(levels[code], s.scale);
  }
}

}  // namespace limbeck::kernels
