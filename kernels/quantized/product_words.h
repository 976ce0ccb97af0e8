// What products with a quantized matrix multiply, for *_loops.cpp: words, in which x and the matrix have as many
// columns as a lane takes at once. FloatWords: a column in float32; beside bfloat16 x the matrix's values are rounded
// to bfloat16 before. PairWords: two neighbouring columns in bfloat16, where the processor multiplies such pairs. Of
// both, sixteen pairs of columns lie in as many lanes, because sixteen bytes have so many pairs of 4-bit codes.
#pragma once
#include <algorithm>
#include <type_traits>

#include "kernels/cpu/panels.h"
#include "kernels/quantized/side_by_side.h"

namespace limbeck::kernels::LIMBECK_ISA {

inline constexpr int64_t kPairs = 16;

// Lanes of two vectors, the second one's behind the first one's.
LIMBECK_INLINE F32 both(F32 a, F32 b, I32 lanes) {
#ifndef __clang__
  return __builtin_shuffle(a, b, lanes);
#else
  constexpr int64_t count = kLanes<float>;
  F32 chosen;
  for (int64_t i = 0; i < count; ++i) chosen[i] = lanes[i] < count ? a[lanes[i]] : b[lanes[i] - count];
  return chosen;
#endif
}

// Pairs of codes in lanes, int8 a byte each, to their values.
LIMBECK_INLINE F32 even_int8(U32 pairs, F32 scale) {
  return __builtin_convertvector((I32)(pairs << 24) >> 24, F32) * scale;
}
LIMBECK_INLINE F32 odd_int8(U32 pairs, F32 scale) {
  return __builtin_convertvector((I32)(pairs << 16) >> 24, F32) * scale;
}

// What the 4-bit codes from `first` on, as many as there are lanes, stand for.
template <CodeKind kind>
LIMBECK_INLINE F32 values_from(int first, float scale, float zero, const Levels& levels) {
  F32 codes{};
  for (int i = 0; i < kLanes<float>; ++i) codes[i] = static_cast<float>(first + i);
  return (kind == CodeKind::kNf4 ? load(levels.nf4 + first) : codes - splat(zero)) * scale;
}

template <bool kRounds>
struct FloatWords {
  static constexpr int64_t kOfPair = 2;  // words of two columns
#if defined(__AVX2__)
  static constexpr int64_t kMostFewRows = 8;
#else
  static constexpr int64_t kMostFewRows = 2;  // what no machine of today runs is to compile quickly
#endif
  static constexpr int kVectors = static_cast<int>(kPairs / kLanes<float>);

  static LIMBECK_INLINE F32 rounded(F32 value) { return kRounds ? rounded_to_bfloat16(value) : value; }

  static LIMBECK_INLINE F32 repeated(const float* word) { return splat(*word); }
  static LIMBECK_INLINE F32 add(F32 x, F32 w, F32 sum) { return fused(x, w, sum); }

  // Two columns of as many rows of the matrix as there are lanes, into a panel.
  static LIMBECK_INLINE void put(float* to, F32 even, F32 odd) {
    store(to, rounded(even));
    store(to + kWidth<float>, rounded(odd));
  }

  // x [rows, columns] into panels, of which a last strip of `strip` words is whole.
  template <class T>
  static void fill_panels(float* to, int64_t stride, const T* x, int64_t row_stride, int64_t rows, int64_t columns,
                          int64_t strip) {
    constexpr int64_t width = kWidth<float>;
    to_panels(to, stride, x, row_stride, rows, columns);
    for (int64_t z = rounded_up_quotient(columns, width); z * width % strip != 0; ++z)
      __builtin_memset(to + z * stride, 0, static_cast<size_t>(rows * width) * sizeof *to);
  }

  // Sixteen pairs of x in lanes: even columns, then odd ones; 0 behind the last one.
  template <class T>
  static LIMBECK_INLINE void put_pairs(const T* x, int64_t count, float* to) {
    constexpr int64_t lanes = kLanes<float>;
    I32 even{};
    for (int32_t i = 0; i < lanes; ++i) even[i] = 2 * i;
    for (int64_t i = 0; i < kVectors; ++i) {
      const int64_t at = 2 * i * lanes;
      const F32 a = at < count ? load_wide_some(x + at, count - at) : F32{};
      const F32 b = at + lanes < count ? load_wide_some(x + at + lanes, count - at - lanes) : F32{};
      store(to + i * lanes, both(a, b, even));
      store(to + kPairs + i * lanes, both(a, b, even + 1));
    }
  }

  struct Pairs {
    F32 even, odd;
  };
  static LIMBECK_INLINE F32 add_pairs(const float* x, const Pairs& w, F32 sum) {
    return fused(load(x + kPairs), w.odd, fused(load(x), w.even, sum));
  }

  // The values of a group of codes.
  template <CodeKind kind>
  class Group {
   public:
    LIMBECK_INLINE Group(float scale, float zero, const Levels& levels) {
      if constexpr (kind == CodeKind::kInt8) {
        values_[0] = splat(scale);
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i)
          values_[i] = rounded(values_from<kind>(i * static_cast<int>(kLanes<float>), scale, zero, levels));
      }
    }

    // Of a pair of codes in each lane.
    LIMBECK_INLINE Pairs of(U32 codes) const {
      if constexpr (kind == CodeKind::kInt8)
        return {rounded(even_int8(codes, values_[0])), rounded(odd_int8(codes, values_[0]))};
      if constexpr (kind == CodeKind::kInt4) return {chosen(codes), chosen(codes >> 4)};
      return {chosen(codes >> 4), chosen(codes)};
    }

    // Of one code of four bits in each lane; what is above them does not count.
    LIMBECK_INLINE F32 chosen(U32 codes) const {
#if defined(__AVX512F__)
      return (F32)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)codes, (__m512)values_[0]);
#elif defined(__AVX2__)
      const __m256 low = _mm256_permutevar8x32_ps((__m256)values_[0], (__m256i)codes);
      const __m256 high = _mm256_permutevar8x32_ps((__m256)values_[1], (__m256i)codes);
      return (F32)_mm256_blendv_ps(low, high, (__m256)(codes << 28));  // the sign is bit 3
#else
      float values[kPairs];
      __builtin_memcpy(values, values_, sizeof values);
      F32 of_lanes;
      for (int64_t i = 0; i < kLanes<float>; ++i) of_lanes[i] = values[codes[i] & 15u];
      return of_lanes;
#endif
    }

   private:
    F32 values_[kVectors];
  };
};

#if defined(__AVX512BF16__)
struct PairWords {
  static constexpr int64_t kOfPair = 1;
  static constexpr int64_t kMostFewRows = 16;
  static constexpr int kVectors = 1;
  using Pairs = F32;  // their bits

  static LIMBECK_INLINE F32 repeated(const float* word) {
    int32_t bits;  // of two halves, which as one float might be anything
    __builtin_memcpy(&bits, word, sizeof bits);
    return (F32)_mm512_set1_epi32(bits);
  }
  // Rounds x's product with the odd column's value into the sum, then the even one's; denormals count as 0.
  static LIMBECK_INLINE F32 add(F32 x, F32 w, F32 sum) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
  static LIMBECK_INLINE F32 add_pairs(const float* x, F32 w, F32 sum) { return add(load(x), w, sum); }

  static LIMBECK_INLINE F32 paired(F32 even, F32 odd) {
    const auto apart = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    return (F32)_mm512_maskz_permutexvar_epi16(0xffffffff, places_of_pairs(), apart);
  }
  static LIMBECK_INLINE void put(float* to, F32 even, F32 odd) { store(to, paired(even, odd)); }

  static void fill_panels(float* to, int64_t stride, const BFloat16Bits* x, int64_t row_stride, int64_t rows,
                          int64_t columns, int64_t strip) {
    constexpr int64_t width = kWidth<float>;
    const int64_t words = rounded_up_quotient(rounded_up_quotient(columns, 2), strip) * strip;
    for (int64_t word = 0; word < words; word += width, to += stride) {
      for (int64_t r = 0; r < rows; ++r) {
        const BFloat16Bits* from = x + r * row_stride + 2 * word;
        put_pairs(from, columns - 2 * word, to + r * width);
        put_pairs(from + 2 * kPairs, columns - 2 * (word + kPairs), to + r * width + kPairs);
      }
    }
  }

  static LIMBECK_INLINE void put_pairs(const BFloat16Bits* x, int64_t count, float* to) {
    constexpr int64_t most = 2 * kPairs;
    const auto have = static_cast<__mmask32>((uint64_t{1} << std::clamp<int64_t>(count, 0, most)) - 1);
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(have, x));
  }

  template <CodeKind kind>
  class Group {
   public:
    LIMBECK_INLINE Group(float scale, float zero, const Levels& levels) {
      if constexpr (kind == CodeKind::kInt8) {
        values_ = (__m512i)splat(scale);
      } else {
        const auto once = (__m256i)_mm512_cvtneps_pbh((__m512)values_from<kind>(0, scale, zero, levels));
        values_ = _mm512_maskz_broadcast_i64x4(0xff, once);
      }
    }

    // Twice sixteen values are in the table: above the four bits of a code anything may stand.
    LIMBECK_INLINE F32 of(U32 codes) const {
      if constexpr (kind == CodeKind::kInt8)
        return paired(even_int8(codes, (F32)values_), odd_int8(codes, (F32)values_));
      const U32 apart = kind == CodeKind::kInt4 ? codes | codes << 12 : codes >> 4 | codes << 16;
      return (F32)_mm512_maskz_permutexvar_epi16(0xffffffff, (__m512i)apart, values_);
    }

   private:
    __m512i values_;
  };

 private:
  static LIMBECK_INLINE __m512i places_of_pairs() {
    typedef uint16_t Places __attribute__((vector_size(64)));
    const Places places = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (__m512i)places;
  }
};

template <class T>
using WordsOf = std::conditional_t<std::is_same_v<T, BFloat16Bits>, PairWords, FloatWords<false>>;
#else
template <class T>
using WordsOf = FloatWords<std::is_same_v<T, BFloat16Bits>>;
#endif

}  // namespace limbeck::kernels::LIMBECK_ISA
