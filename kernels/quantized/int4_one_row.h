// The product of a row of x with a matrix in int4 of which x is codes too, for int4_dynamic_loops.cpp. Rows of the
// matrix are read from end to end, which memory gives fastest, two at a time, so that the codes of x are loaded once
// for both; groups lie in the lanes, which are the chains of int4_dynamic_loops.h.
#pragma once
#include "kernels/quantized/int4_dynamic_loops.h"
#include "kernels/quantized/side_by_side.h"

#if defined(__AVX2__)
namespace limbeck::kernels::LIMBECK_ISA {

class OneRowOfInt4 {
 public:
  static constexpr int64_t kRowsOfMatrix = kLanes<float>;

  struct Scratch {
    alignas(64) float sums[kRowsOfMatrix][kInt4Chains];
  };

  // Of row m of x and rows [n, n + count) of the matrix, not yet scaled by the scale of x.
  static LIMBECK_INLINE F32 sums(const Int4Product& p, int64_t m, int64_t n, int64_t count, Scratch& own) {
    for (int64_t i = 0; i < count; i += kTogether) {
      const int64_t last = std::min(i + 1, count - 1);  // once more, where there is no other
      with_scales(p, m, n + i, n + last, own.sums + i);
    }
    return with_chains(F32{}, own.sums);
  }

 private:
  static constexpr int64_t kTogether = 2;              // rows of the matrix
  static constexpr int64_t kWords = kLanes<uint32_t>;  // of a vector
  static constexpr int64_t kVectorCodes = kWords * kWordCodes;
  static constexpr int kVectors = 4;  // that have as many pieces, of kSmallestGroup codes each, as a vector has lanes
  static_assert(kVectors * kVectorCodes == kLanes<int32_t> * kSmallestGroup);

  struct OfBoth {
    I32 row[kTogether];
  };

#if defined(__AVX512BW__)
  using Bytes = __m512i;
  static LIMBECK_INLINE Bytes load_bytes(const void* from) { return _mm512_loadu_si512(from); }
  // A lane has the sum of eight products, half of which int16 holds (4 * 15 * 128).
  static LIMBECK_INLINE Bytes multiplied(Bytes low, Bytes high, Bytes even, Bytes odd) {
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), low, even), high, odd);
#else
    const Bytes pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, even), _mm512_maddubs_epi16(high, odd));
    return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#endif
  }
  // Of two neighbours each: in every four lanes those of a, then those of b.
  static LIMBECK_INLINE Bytes pairs_added(Bytes a, Bytes b) {
    return _mm512_madd_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(1));
  }
  // The maskz forms: see simd.h.
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
  static LIMBECK_INLINE Bytes multiplied(Bytes low, Bytes high, Bytes even, Bytes odd) {
    const Bytes pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, even), _mm256_maddubs_epi16(high, odd));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
  static LIMBECK_INLINE Bytes pairs_added(Bytes a, Bytes b) {
    return _mm256_madd_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(1));
  }
  static LIMBECK_INLINE I32 chosen(Bytes from, I32 lanes) {
    return (I32)_mm256_permutevar8x32_epi32(from, (__m256i)lanes);
  }
  static LIMBECK_INLINE I32 folded(I32 a, I32 b) {
    return (I32)_mm256_permute4x64_epi64(_mm256_hadd_epi32((__m256i)a, (__m256i)b), 0xd8);
  }
#endif

  // Words of both rows, of which the first is meant; behind the end of the rows there is none.
  struct Words {
    const uint8_t* row[kTogether];
    int64_t count;

    LIMBECK_INLINE Words from(int64_t word) const {
      return {{row[0] + word * kWordBytes, row[1] + word * kWordBytes}, count - word};
    }
  };

  // Vector v of the codes of both, multiplied by those of x: the even ones, and the odd ones half a run of arranged
  // codes further on.
  static LIMBECK_INLINE void multiply(const Words& words, const int8_t* x, int64_t v, Bytes (&products)[kTogether]) {
    constexpr int64_t parts = kArrangedCodes / kVectorCodes;
    const int8_t* of_x = x + v / parts * kArrangedCodes + v % parts * kVectorBytes;
    const Bytes even = load_bytes(of_x), odd = load_bytes(of_x + kArrangedCodes / 2);
#pragma GCC unroll 2
    for (int64_t r = 0; r < kTogether; ++r) {
      const auto word = (U32)load_bytes(words.row[r] + v * kVectorBytes);
      products[r] = multiplied((Bytes)(word & 0x0f0f0f0fu), (Bytes)(word >> 4 & 0x0f0f0f0fu), even, odd);
    }
  }

  // The sums of a vector's worth of pieces, in order, of x as arranged; of pieces behind the rows 0.
  template <bool Whole>
  static LIMBECK_INLINE OfBoth sums_of_pieces(const Words& words, const int8_t* x) {
    Bytes of[kVectors][kTogether] = {};
    if constexpr (Whole) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) multiply(words, x, v, of[v]);
    } else {
      alignas(64) uint8_t own[kTogether][kVectors * kVectorBytes] = {};
      const int64_t have = std::min(words.count, kVectors * kWords);
      for (int64_t r = 0; r < kTogether; ++r)
        __builtin_memcpy(own[r], words.row[r], static_cast<size_t>(have * kWordBytes));
      for (int64_t v = 0; v * kWords < have; ++v) multiply({{own[0], own[1]}, have}, x, v, of[v]);
    }
    // The four lanes of a piece lie side by side, 8 * 15 * 128 at the most each; then piece q of vector v is in lane
    // 4 q + v.
    constexpr int64_t pieces = kLanes<int32_t> / kVectors;
    I32 order{};
    for (int32_t i = 0; i < kLanes<int32_t>; ++i) order[i] = i % pieces * kVectors + i / pieces;
    OfBoth sums;
#pragma GCC unroll 2
    for (int64_t r = 0; r < kTogether; ++r)
      sums.row[r] = chosen(pairs_added(pairs_added(of[0][r], of[1][r]), pairs_added(of[2][r], of[3][r])), order);
    return sums;
  }

  // The sums of as many groups as there are lanes, a group being 2^Doublings pieces.
  template <int Doublings, bool Whole>
  static LIMBECK_INLINE OfBoth sums_of_groups(const Words& words, const int8_t* x) {
    if constexpr (Doublings == 0) {
      return sums_of_pieces<Whole>(words, x);
    } else {
      constexpr int64_t half = kLanes<int32_t> * (kSmallestGroup << (Doublings - 1));
      const Words behind = words.from(half / kWordCodes);
      const OfBoth first = sums_of_groups<Doublings - 1, Whole>(words, x);
      OfBoth second{};
      if (Whole || behind.count > 0) second = sums_of_groups<Doublings - 1, Whole>(behind, x + half);
      return {{folded(first.row[0], second.row[0]), folded(first.row[1], second.row[1])}};
    }
  }

  // A row of x, and two of the matrix.
  template <class S>
  struct Operands {
    const int8_t* x;
    const int32_t* middles;
    Words words;
    const S* scales[kTogether];
    int64_t groups;
  };

  // Adds what `lanes` groups from `group` on add to the chains.
  template <int Doublings, bool Whole, class S>
  static LIMBECK_INLINE void add_groups(const Operands<S>& of, int64_t group, F32 (&chains)[kTogether]) {
    constexpr int64_t codes = kSmallestGroup << Doublings, kScalesAhead = 4096;
    const int64_t have = Whole ? kLanes<float> : of.groups - group;
    const Words words = of.words.from(group * codes / kWordCodes);
#pragma GCC unroll 2
    for (int64_t r = 0; r < kTogether; ++r) {
      ask_for_codes(words.row[r], kLanes<float> * codes / 2);
      __builtin_prefetch(reinterpret_cast<const uint8_t*>(of.scales[r] + group) + kScalesAhead, 0, 2);
    }
    const OfBoth sums = sums_of_groups<Doublings, Whole>(words, of.x + group * codes);
    const I32 middles = load_some(of.middles + group, have);
#pragma GCC unroll 2
    for (int64_t r = 0; r < kTogether; ++r)
      chains[r] += __builtin_convertvector(sums.row[r] - middles, F32) * load_wide_some(of.scales[r] + group, have);
  }

  template <int Doublings, class S>
  static __attribute__((noinline)) void of_rows(const Operands<S>& of, float (*to)[kInt4Chains]) {
    constexpr int64_t lanes = kLanes<float>, parts = kInt4Chains / lanes;
    constexpr int64_t words = (lanes * kSmallestGroup << Doublings) / kWordCodes;
    F32 chains[parts][kTogether] = {};
    int64_t group = 0;
    for (int64_t word = 0; word + parts * words <= of.words.count; word += parts * words, group += kInt4Chains) {
#pragma GCC unroll 2
      for (int64_t part = 0; part < parts; ++part) add_groups<Doublings, true>(of, group + part * lanes, chains[part]);
    }
    for (int64_t part = 0; group < of.groups; ++part, group += lanes)
      add_groups<Doublings, false>(of, group, chains[part]);
#pragma GCC unroll 2
    for (int64_t r = 0; r < kTogether; ++r) {
#pragma GCC unroll 2
      for (int64_t part = 0; part < parts; ++part) store(to[r] + part * lanes, chains[part][r]);
    }
  }

  template <class S>
  static LIMBECK_INLINE void with_groups(const Int4Product& p, int64_t m, int64_t n, int64_t last,
                                         float (*to)[kInt4Chains]) {
    const int64_t groups = groups_of(p.weight), words = words_of_row(p.weight);
    const auto* codes = static_cast<const uint8_t*>(p.weight.codes);
    const auto* scales = static_cast<const S*>(p.weight.scales);
    const Operands<S> of{p.codes + m * p.stride,
                         p.middles + m * groups,
                         {{codes + n * words * kWordBytes, codes + last * words * kWordBytes}, words},
                         {scales + n * groups, scales + last * groups},
                         groups};
    switch (p.weight.format.group()) {
      case kSmallestGroup:
        return of_rows<0>(of, to);
      case 2 * kSmallestGroup:
        return of_rows<1>(of, to);
      default:
        return of_rows<2>(of, to);
    }
  }

  static LIMBECK_INLINE void with_scales(const Int4Product& p, int64_t m, int64_t n, int64_t last,
                                         float (*to)[kInt4Chains]) {
    if (p.weight.scale_storage == Storage::kFloat32) return with_groups<float>(p, m, n, last, to);
    if (p.weight.scale_storage == Storage::kBFloat16) return with_groups<BFloat16Bits>(p, m, n, last, to);
    with_groups<Float16Bits>(p, m, n, last, to);
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
#endif
