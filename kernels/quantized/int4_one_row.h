// The product of one row of x with a matrix in int4 of which x is codes too, for int4_dynamic_loops.cpp: rows of the
// matrix are read as they lie, and only sums are transposed, sixteen rows' at a time. Every sum is that of the lanes.
#pragma once
#include "kernels/quantized/int4_dynamic_loops.h"
#include "kernels/quantized/side_by_side.h"

#if defined(__AVX512BW__)
namespace limbeck::kernels::LIMBECK_ISA {

struct OneRowOfInt4 {
  static constexpr int64_t kRowsOfMatrix = kLanes<float>;
  static constexpr int64_t kWords = kArrangedCodes / kWordCodes;
  static constexpr int kPieces = kArrangedCodes / kSmallestGroup;
  static_assert(kWords == kLanes<uint32_t> && kPieces == 4);

  // With even and odd codes of x: a lane has the sum of eight products, half of which int16 holds (4 * 15 * 128).
  static LIMBECK_INLINE __m512i products(U32 words, __m512i even, __m512i odd) {
    const auto low = (__m512i)(words & 0x0f0f0f0fu), high = (__m512i)(words >> 4 & 0x0f0f0f0fu);
#if defined(__AVX512VNNI__)
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), low, even), high, odd);
#else
    const __m512i pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, even), _mm512_maddubs_epi16(high, odd));
    return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#endif
  }

  // Of four rows: in each quarter the sums of its lanes.
  static LIMBECK_INLINE __m512i sums_of_quarters(const __m512i (&of)[4]) {
    constexpr __mmask16 all = 0xffff;
    __m512i pair[2];
    for (int i = 0; i < 2; ++i) {
      const __m512i a = of[2 * i], b = of[2 * i + 1];
      pair[i] = _mm512_add_epi32(_mm512_maskz_unpacklo_epi32(all, a, b), _mm512_maskz_unpackhi_epi32(all, a, b));
    }
    return _mm512_add_epi32(_mm512_maskz_unpacklo_epi64(0xff, pair[0], pair[1]),
                            _mm512_maskz_unpackhi_epi64(0xff, pair[0], pair[1]));
  }

  template <int Quarters>
  static LIMBECK_INLINE __m512i quarters(__m512i a, __m512i b) {
    return _mm512_maskz_shuffle_i32x4(0xffff, a, b, Quarters);
  }

  // Sums of the pieces, of kSmallestGroup codes each, that sixteen rows of the matrix have from `byte` on, where
  // `words` are left of each; x as arranged. What lies `ahead` is asked for, into
  // the second cache: the first one would lose it before it is read.
  static LIMBECK_INLINE void sum_pieces(const uint8_t* const (&rows)[kRowsOfMatrix], int64_t byte, int64_t words,
                                        int64_t ahead, const int8_t* x, I32 (&pieces)[kPieces]) {
    const auto have = static_cast<__mmask16>((1u << std::min(words, kWords)) - 1u);
    const __m512i even = _mm512_loadu_si512(x), odd = _mm512_loadu_si512(x + kArrangedCodes / 2);
    __m512i four[4];
#pragma GCC unroll 4
    for (int a = 0; a < 4; ++a) {
      __m512i of_row[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        __builtin_prefetch(rows[4 * a + i] + byte + ahead, 0, 2);
        const auto word = (U32)_mm512_maskz_loadu_epi32(have, rows[4 * a + i] + byte);
        of_row[i] = products(word, even, odd);
      }
      four[a] = sums_of_quarters(of_row);
    }
    const __m512i low[2] = {quarters<0x44>(four[0], four[1]), quarters<0x44>(four[2], four[3])};
    const __m512i high[2] = {quarters<0xee>(four[0], four[1]), quarters<0xee>(four[2], four[3])};
    pieces[0] = (I32)quarters<0x88>(low[0], low[1]);
    pieces[1] = (I32)quarters<0xdd>(low[0], low[1]);
    pieces[2] = (I32)quarters<0x88>(high[0], high[1]);
    pieces[3] = (I32)quarters<0xdd>(high[0], high[1]);
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
#endif
