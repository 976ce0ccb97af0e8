// The product of a row of x with a matrix in int4 of which x is codes too, for int4_dynamic_loops.cpp. Rows of the
// matrix are read one by one from end to end, which memory gives fastest, with groups in the lanes; what each group
// adds is put aside, and added up for a vector of rows at once in the order of groups: every sum is that of the lanes.
#pragma once
#include "kernels/quantized/int4_dynamic_loops.h"
#include "kernels/quantized/side_by_side.h"

#if defined(__AVX2__)
namespace limbeck::kernels::LIMBECK_ISA {

class OneRowOfInt4 {
 public:
  static constexpr int64_t kRowsOfMatrix = kLanes<float>;
  static constexpr int64_t kMostGroups = 256;  // that are put aside at once

  struct Scratch {
    // Rows lie a vector further apart, off each other's cache sets.
    alignas(64) float products[kRowsOfMatrix][kMostGroups + kLanes<float>];
  };

  // Of row m of x and rows [n, n + count) of the matrix, not yet scaled by the scale of x.
  static LIMBECK_INLINE F32 sums(const Int4Product& p, int64_t m, int64_t n, int64_t count, Scratch& own) {
    const int64_t groups = groups_of(p.weight);
    F32 y{};
    for (int64_t group = 0; group < groups; group += kMostGroups) {
      const int64_t have = std::min(kMostGroups, groups - group);
      for (int64_t i = 0; i < count; ++i) put_aside(p, m, n + i, group, have, own.products[i]);
      y = added_up(own, have, y);
    }
    return y;
  }

 private:
  static constexpr int64_t kWords = kLanes<uint32_t>;  // of a vector
  static constexpr int64_t kVectorCodes = kWords * kWordCodes;
  static constexpr int kVectors = 4;  // that have as many pieces, of kSmallestGroup codes each, as a vector has lanes
  static_assert(kVectors * kVectorCodes == kLanes<int32_t> * kSmallestGroup);

#if defined(__AVX512BW__)
  using Bytes = __m512i;
  static LIMBECK_INLINE Bytes load_bytes(const void* from) { return _mm512_loadu_si512(from); }
  static LIMBECK_INLINE Bytes load_some_words(const uint8_t* from, int64_t words) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << words) - 1u), from);
  }
  // A lane has the sum of eight products, half of which int16 holds (4 * 15 * 128).
  static LIMBECK_INLINE Bytes multiplied(Bytes low, Bytes high, Bytes even, Bytes odd) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), low, even), high, odd);
#else
    const Bytes pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, even), _mm512_maddubs_epi16(high, odd));
    return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#endif
  }
  // The maskz forms: see simd.h.
  static LIMBECK_INLINE Bytes neighbours_added(Bytes a, Bytes b) {
    return _mm512_add_epi32(_mm512_maskz_unpacklo_epi32(0xffff, a, b), _mm512_maskz_unpackhi_epi32(0xffff, a, b));
  }
  static LIMBECK_INLINE Bytes pairs_added(Bytes a, Bytes b) {
    return _mm512_add_epi32(_mm512_maskz_unpacklo_epi64(0xff, a, b), _mm512_maskz_unpackhi_epi64(0xff, a, b));
  }
  static LIMBECK_INLINE I32 chosen(Bytes from, I32 lanes) {
    return (I32)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)lanes, from);
  }
  // Lanes 0 and 1, 2 and 3, … of a, then of b.
  static LIMBECK_INLINE I32 folded(I32 a, I32 b) {
    const I32 even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}, odd = even + 1;
    return (I32)_mm512_maskz_permutex2var_epi32(0xffff, (__m512i)a, (__m512i)even, (__m512i)b) +
           (I32)_mm512_maskz_permutex2var_epi32(0xffff, (__m512i)a, (__m512i)odd, (__m512i)b);
  }
#else
  using Bytes = __m256i;
  static LIMBECK_INLINE Bytes load_bytes(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static LIMBECK_INLINE Bytes load_some_words(const uint8_t* from, int64_t words) {
    Bytes some{};
    __builtin_memcpy(&some, from, static_cast<size_t>(words * kWordBytes));
    return some;
  }
  static LIMBECK_INLINE Bytes multiplied(Bytes low, Bytes high, Bytes even, Bytes odd) {
    const Bytes pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, even), _mm256_maddubs_epi16(high, odd));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static LIMBECK_INLINE Bytes neighbours_added(Bytes a, Bytes b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  }
  static LIMBECK_INLINE Bytes pairs_added(Bytes a, Bytes b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  }
  static LIMBECK_INLINE I32 chosen(Bytes from, I32 lanes) {
    return (I32)_mm256_permutevar8x32_epi32(from, (__m256i)lanes);
  }
  static LIMBECK_INLINE I32 folded(I32 a, I32 b) {
    return (I32)_mm256_permute4x64_epi64(_mm256_hadd_epi32((__m256i)a, (__m256i)b), 0xd8);
  }
#endif

  // With the codes of x that words meet: the even ones, and the odd ones half a run of arranged codes further on.
  static LIMBECK_INLINE Bytes products(Bytes words, const int8_t* x) {
    const auto word = (U32)words;
    return multiplied((Bytes)(word & 0x0f0f0f0fu), (Bytes)(word >> 4 & 0x0f0f0f0fu), load_bytes(x),
                      load_bytes(x + kArrangedCodes / 2));
  }

  // The sums of pieces from `codes` on, in order, of x as arranged; of pieces behind the row, which has `words` left,
  // 0.
  static LIMBECK_INLINE I32 sums_of_pieces(const uint8_t* codes, int64_t words, const int8_t* x) {
    const auto of_x = [&](int64_t v) __attribute__((always_inline)) {
      constexpr int64_t parts = kArrangedCodes / kVectorCodes;
      return x + v / parts * kArrangedCodes + v % parts * kVectorBytes;
    };
    Bytes of[kVectors];
    if (words >= kVectors * kWords) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) of[v] = products(load_bytes(codes + v * kVectorBytes), of_x(v));
    } else {
      for (int64_t v = 0; v < kVectors; ++v) {
        const int64_t left = std::min(words - v * kWords, kWords);
        of[v] = left > 0 ? products(load_some_words(codes + v * kVectorBytes, left), of_x(v)) : Bytes{};
      }
    }
    // The four lanes of a piece lie side by side; then piece q of vector v is in lane 4 q + v.
    const Bytes sums = pairs_added(neighbours_added(of[0], of[1]), neighbours_added(of[2], of[3]));
    constexpr int64_t pieces = kLanes<int32_t> / kVectors;
    I32 order{};
    for (int32_t i = 0; i < kLanes<int32_t>; ++i) order[i] = i % pieces * kVectors + i / pieces;
    return chosen(sums, order);
  }

  // The sums of as many groups as there are lanes, a group being 2^Doublings pieces.
  template <int Doublings>
  static LIMBECK_INLINE I32 sums_of_groups(const uint8_t* codes, int64_t words, const int8_t* x) {
    if constexpr (Doublings == 0) {
      return sums_of_pieces(codes, words, x);
    } else {
      constexpr int64_t half = kLanes<int32_t> * (kSmallestGroup << (Doublings - 1));
      const int64_t left = words - half / kWordCodes;
      const I32 first = sums_of_groups<Doublings - 1>(codes, words, x);
      return folded(first, left > 0 ? sums_of_groups<Doublings - 1>(codes + half / 2, left, x + half) : I32{});
    }
  }

  static LIMBECK_INLINE int64_t scale_bytes(const QuantizedView& v) {
    return v.scale_storage == Storage::kFloat32 ? 4 : 2;
  }

  // What groups [group, group + count) of row n of the matrix add.
  template <int Doublings>
  static __attribute__((noinline)) void of_groups(const Int4Product& p, int64_t m, int64_t n, int64_t group,
                                                  int64_t count, float* products) {
    const int64_t groups = groups_of(p.weight), words = rounded_up_quotient(p.k, kWordCodes);
    const int64_t column = group << p.weight.format.group_shift;
    const uint8_t* codes = static_cast<const uint8_t*>(p.weight.codes) + n * words * kWordBytes;
    const uint8_t* scales = static_cast<const uint8_t*>(p.weight.scales) + n * groups * scale_bytes(p.weight);
    const int8_t* x = p.codes + m * p.stride;
    for (int64_t g = 0; g < count; g += kLanes<float>) {
      const int64_t k = column + (g << p.weight.format.group_shift), have = count - g;
      constexpr int64_t kScalesAhead = 4096, bytes = (kLanes<float> * kSmallestGroup << Doublings) / 2;
      ask_for_codes(codes + k / 2, bytes);
      __builtin_prefetch(scales + (group + g) * scale_bytes(p.weight) + kScalesAhead, 0, 2);
      const I32 sums = sums_of_groups<Doublings>(codes + k / 2, words - k / kWordCodes, x + k);
      const I32 centred = sums - kMiddleCode * load_some(p.sums + m * groups + group + g, have);
      store(products + g, __builtin_convertvector(centred, F32) * load_scales(p.weight, n * groups + group + g, have));
    }
  }

  static LIMBECK_INLINE void put_aside(const Int4Product& p, int64_t m, int64_t n, int64_t group, int64_t count,
                                       float* products) {
    switch (p.weight.format.group()) {
      case kSmallestGroup:
        return of_groups<0>(p, m, n, group, count, products);
      case 2 * kSmallestGroup:
        return of_groups<1>(p, m, n, group, count, products);
      default:
        return of_groups<2>(p, m, n, group, count, products);
    }
  }

  static LIMBECK_INLINE F32 added_up(const Scratch& own, int64_t groups, F32 y) {
    constexpr int64_t lanes = kLanes<float>;
    for (int64_t g = 0; g < groups; g += lanes) {
      F32 of_group[lanes];
#pragma GCC unroll 16
      for (int64_t i = 0; i < lanes; ++i) of_group[i] = load(own.products[i] + g);
      transpose_step<float, lanes / 2>(of_group);
      if (groups - g >= lanes) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) y += of_group[i];
      } else {
        for (int64_t i = 0; i < groups - g; ++i) y += of_group[i];
      }
    }
    return y;
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
#endif
