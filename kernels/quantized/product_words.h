// What products with a quantized matrix multiply, for *_loops.cpp: words, in which x and the matrix have as many
// columns as a lane takes at once. FloatWords: a column in float32; beside bfloat16 x the matrix's values are rounded
// to bfloat16 before. PairWords: two columns in bfloat16, where the processor multiplies such pairs.
//
// Columns meet the lanes as 4-bit codes lie in memory. A strip has 2 kTurns neighbouring columns for each of sixteen
// lanes, and in each turn every lane takes two of its own that are kTurns apart. FloatWords have one turn: a byte is
// two neighbours. PairWords have four: a lane is two halves of four codes each, every half is shifted by the turn's
// code, and one look-up for both halves gives the turn's pair.
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
  static constexpr int64_t kOfPair = 2, kTurns = 1;  // kOfPair: words of two columns
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

  // Of a strip: pairs of 8-bit codes, or bytes of two of 4 bits, in the lanes.
  template <CodeKind kind>
  class Codes {
   public:
    LIMBECK_INLINE explicit Codes(const uint8_t* from) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        if constexpr (kind == CodeKind::kInt8) {
          U16 pairs;
          __builtin_memcpy(&pairs, from + 2 * i * kLanes<float>, sizeof pairs);
          pairs_[i] = widen(pairs);
        } else {
          pairs_[i] = widen_bytes(from + i * kLanes<float>);
        }
      }
    }
    LIMBECK_INLINE U32 vector(int i) const { return pairs_[i]; }

   private:
    U32 pairs_[kVectors];
  };

  // The values of the codes of a group; a strip lies in one.
  template <CodeKind kind, int kGroups = 1>
  class Group {
    static_assert(kGroups == 1);

   public:
    LIMBECK_INLINE Group(const float* scales, const float* zeros, const Levels& levels, int64_t)
        : Group(*scales, *zeros, levels) {}
    LIMBECK_INLINE Group(float scale, float zero, const Levels& levels) {
      if constexpr (kind == CodeKind::kInt8) {
        values_[0] = splat(scale);
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < kVectors; ++i)
          values_[i] = rounded(values_from<kind>(i * static_cast<int>(kLanes<float>), scale, zero, levels));
      }
    }

    // Of the pairs of a vector.
    LIMBECK_INLINE Pairs of(const Codes<kind>& strip, int vector) const {
      const U32 codes = strip.vector(vector);
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
  static constexpr int64_t kOfPair = 1, kTurns = 4;
  static constexpr int64_t kMostFewRows = 16;
  static constexpr int kVectors = 1;
  using Pairs = F32;  // their bits

  static LIMBECK_INLINE F32 repeated(const float* word) {
    int32_t bits;  // of two halves, which as one float might be anything
    __builtin_memcpy(&bits, word, sizeof bits);
    return (F32)_mm512_set1_epi32(bits);
  }
  // Rounds x's product with the second column's value into the sum, then the first one's; denormals count as 0.
  static LIMBECK_INLINE F32 add(F32 x, F32 w, F32 sum) {
    return (F32)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
  static LIMBECK_INLINE F32 add_pairs(const float* x, F32 w, F32 sum) { return add(load(x), w, sum); }

  static LIMBECK_INLINE F32 paired(F32 first, F32 second) {
    const auto apart = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    const Places places = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (F32)_mm512_maskz_permutexvar_epi16(kEvery, (__m512i)places, apart);
  }
  static LIMBECK_INLINE void put(float* to, F32 first, F32 second) { store(to, paired(first, second)); }

  // x [rows, columns] into panels of words, of which a last strip is whole.
  static void fill_panels(float* to, int64_t stride, const BFloat16Bits* x, int64_t row_stride, int64_t rows,
                          int64_t columns, int64_t strip) {
    constexpr int64_t width = kWidth<float>;
    static_assert(kTurns * kPairs == 2 * width);
    for (int64_t word = 0; 2 * word < columns; word += strip, to += 2 * stride) {
      for (int64_t r = 0; r < rows; ++r) {
        F32 turns[kTurns];
        take_turns(x + r * row_stride + 2 * word, columns - 2 * word, turns);
        for (int64_t i = 0; i < kTurns; ++i) store(to + i / 2 * stride + r * width + i % 2 * kPairs, turns[i]);
      }
    }
  }

  // A strip of x; 0 behind the last column.
  static LIMBECK_INLINE void put_pairs(const BFloat16Bits* x, int64_t count, float* to) {
    F32 turns[kTurns];
    take_turns(x, count, turns);
    for (int64_t i = 0; i < kTurns; ++i) store(to + i * kPairs, turns[i]);
  }

  // Of a strip: halves of four 4-bit codes, or four 8-bit ones in each lane, of the first halves and of the second.
  template <CodeKind kind>
  class Codes {
   public:
    LIMBECK_INLINE explicit Codes(const uint8_t* from) {
      words_[0] = load(reinterpret_cast<const uint32_t*>(from));
      if constexpr (kind == CodeKind::kInt8) {
        const U32 front = words_[0], back = load(reinterpret_cast<const uint32_t*>(from) + kPairs);
        const I32 even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
        words_[0] = (U32)both((F32)front, (F32)back, even);
        words_[1] = (U32)both((F32)front, (F32)back, even + 1);
      }
    }
    LIMBECK_INLINE F32 int8(int half, int turn) const {
      return __builtin_convertvector((I32)(words_[half] << (24 - 8 * turn)) >> 24, F32);
    }
    // In the low four bits of each half; what is above them is anything.
    LIMBECK_INLINE __m512i nibbles(int turn) const {
      const int shift = 4 * (kind == CodeKind::kNf4 ? turn ^ 1 : turn);
      return _mm512_maskz_srli_epi16(kEvery, (__m512i)words_[0], static_cast<unsigned>(shift));
    }

   private:
    U32 words_[kind == CodeKind::kInt8 ? 2 : 1];
  };

  // What the codes of a strip stand for, which lies in so many groups of equal length: `groups` of them, by which the
  // look-ups of 4-bit codes differ, so that those are built for each number of them.
  template <CodeKind kind, int kGroups>
  class Group {
   public:
    LIMBECK_INLINE Group(const float* scales, const float* zeros, const Levels& levels, int64_t groups) {
      if constexpr (kind == CodeKind::kInt8) {
        tables_[0] = (__m512i)of_lanes(scales, groups);
      } else {
        for (int i = 0; i < kTables; ++i) {
          const int first = 2 * i, second = kGroups == 1 ? first : first + 1;
          tables_[i] = (__m512i)_mm512_cvtne2ps_pbh((__m512)values_from<kind>(0, scales[second], zeros[second], levels),
                                                    (__m512)values_from<kind>(0, scales[first], zeros[first], levels));
        }
      }
    }

    LIMBECK_INLINE F32 of(const Codes<kind>& codes, int turn) const {
      if constexpr (kind == CodeKind::kInt8) {
        const auto scales = (F32)tables_[0];
        return paired(codes.int8(0, turn) * scales, codes.int8(1, turn) * scales);
      } else {
        const __m512i nibbles = codes.nibbles(turn);
        // Twice the same values are in the table: above the four bits anything may stand.
        if constexpr (kGroups == 1) return (F32)_mm512_maskz_permutexvar_epi16(kEvery, nibbles, tables_[0]);
        const auto at = (__m512i)(((U32)nibbles & 0x000f000fu) | groups_of_halves());
        if constexpr (kGroups == 2) return (F32)_mm512_maskz_permutexvar_epi16(kEvery, at, tables_[0]);
        return (F32)_mm512_permutex2var_epi16(tables_[0], at, tables_[kTables - 1]);
      }
    }

   private:
    static constexpr int kTables = kind != CodeKind::kInt8 && kGroups == 4 ? 2 : 1;  // of two groups' values

    static LIMBECK_INLINE F32 of_lanes(const float* scales, int64_t groups) {
      const I32 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      const F32 all = load(scales);
      return both(all, all, lanes >> __builtin_ctzll(static_cast<uint64_t>(kPairs / groups)));
    }
    static LIMBECK_INLINE U32 groups_of_halves() {
      U32 groups{};
      for (uint32_t i = 0; i < kPairs; ++i) groups[i] = i * kGroups / static_cast<uint32_t>(kPairs) * 0x00100010u;
      return groups;
    }

    __m512i tables_[kTables];
  };

 private:
  static constexpr __mmask32 kEvery = 0xffffffff;  // the maskz forms: see simd.h
  typedef uint16_t Places __attribute__((vector_size(64)));

  // The pairs that lanes take from a strip of x, turn by turn.
  static LIMBECK_INLINE void take_turns(const BFloat16Bits* x, int64_t count, F32 (&turns)[kTurns]) {
    constexpr int64_t most = 2 * kPairs;
    const auto part = [&](int64_t i) __attribute__((always_inline)) {
      const int64_t have = std::clamp<int64_t>(count - i * most, 0, most);
      return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << have) - 1), x + i * most);
    };
    // The first columns of eight halves each, then their second ones.
    const Places first = {0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60,
                          1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 53, 57, 61};
    const __m512i a = part(0), b = part(1), c = part(2), d = part(3);
    for (int i = 0; i < 2; ++i) {
      const auto at = (__m512i)(first + static_cast<uint16_t>(2 * i));
      const __m512i front = _mm512_permutex2var_epi16(a, at, b), back = _mm512_permutex2var_epi16(c, at, d);
      turns[2 * i] = (F32)_mm512_maskz_shuffle_i64x2(0xff, front, back, 0x44);
      turns[2 * i + 1] = (F32)_mm512_maskz_shuffle_i64x2(0xff, front, back, 0xee);
    }
  }
};

template <class T>
using WordsOf = std::conditional_t<std::is_same_v<T, BFloat16Bits>, PairWords, FloatWords<false>>;
#else
template <class T>
using WordsOf = FloatWords<std::is_same_v<T, BFloat16Bits>>;
#endif

}  // namespace limbeck::kernels::LIMBECK_ISA
