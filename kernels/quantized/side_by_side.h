// Weights of neighbouring rows side by side, for *_loops.cpp: a lane of a vector is a row of the matrix, and a word
// (four bytes) of codes of each row is brought into one vector, so that codes are read once and unpacked in registers.
// The values are those of quantized_formula.h to the bit.
#pragma once
#include <algorithm>

#include "kernels/cpu/panels.h"
#include "kernels/quantized/quantized_formula.h"

namespace limbeck::kernels::LIMBECK_ISA {

template <CodeKind kind>
inline constexpr int kValuesOfWord = kind == CodeKind::kInt8 ? 4 : 8;
inline constexpr int64_t kWordBytes = 4;
inline constexpr int kEight = 8;  // columns, of which codes of every kind are whole words

// Levels of nf4 and of its scales; in the loops nobody may ask an inline variable for its address.
struct Levels {
  const float* nf4;
  const float* dynamic;
};

// Blocks of nf4 must not cross from one row into the next.
LIMBECK_INLINE bool lies_side_by_side(const QuantizedView& v) {
  return v.format.kind != CodeKind::kNf4 || v.columns % kNf4Block == 0;
}

// Of rows that lie side by side.
template <CodeKind kind>
LIMBECK_INLINE int64_t row_bytes(const QuantizedView& v) {
  if constexpr (kind == CodeKind::kInt4) return words_of_row(v) * kWordBytes;
  return kind == CodeKind::kInt8 ? v.columns : v.columns / 2;
}
// Of the codes of so many columns of a row, which are whole bytes.
template <CodeKind kind>
LIMBECK_INLINE int64_t bytes_before(const QuantizedView& v, int64_t columns) {
  if constexpr (kind == CodeKind::kInt4) return columns * v.format.bits / 8;
  return kind == CodeKind::kInt8 ? columns : columns / 2;
}

// Blocks of codes of 2 or 3 bits [blocks * bits][lanes] to nibbles [blocks * 4][lanes] in the same place, of which the
// last block may lack words: the last one first, so that none is overwritten before it is read.
template <int bits>
void widen_in_place(uint32_t* words, int64_t count, int64_t blocks) {
  constexpr int64_t lanes = kLanes<float>;
  for (int64_t block = blocks - 1; block >= 0; --block) {
    U32 narrow[bits], nibbles[kNibbleWords];
    for (int i = 0; i < bits; ++i)
      narrow[i] = block * bits + i < count ? load(words + (block * bits + i) * lanes) : U32{};
    widen_block<bits>(narrow, nibbles);
    for (int i = 0; i < kNibbleWords; ++i) store(words + (block * kNibbleWords + i) * lanes, nibbles[i]);
  }
}

// Rows that are read from end to end: what lies so far behind is asked for, into the second cache, because the first
// one would lose it before it is read. By itself the processor stops foreseeing at the end of a page.
LIMBECK_INLINE void ask_for_codes(const uint8_t* codes, int64_t bytes) {
  constexpr int64_t ahead = 16384, line = 64;
  for (int64_t i = 0; i < bytes; i += line) __builtin_prefetch(codes + ahead + i, 0, 2);
}

// Stored scales [index, index + count), of as many lanes as there are.
LIMBECK_INLINE F32 load_scales(const QuantizedView& v, int64_t index, int64_t count) {
  if (v.scale_storage == Storage::kFloat32) return load_wide_some(static_cast<const float*>(v.scales) + index, count);
  if (v.scale_storage == Storage::kBFloat16)
    return load_wide_some(static_cast<const BFloat16Bits*>(v.scales) + index, count);
  return load_wide_some(static_cast<const Float16Bits*>(v.scales) + index, count);
}

LIMBECK_INLINE I32 load_some(const int32_t* from, int64_t count) {
  if (count >= kLanes<int32_t>) return load(from);
  I32 some{};
  for (int64_t i = 0; i < count; ++i) some[i] = from[i];
  return some;
}

LIMBECK_INLINE U32 widen_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
  return (U32)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (U32)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  U32 wide;
  for (int64_t i = 0; i < kLanes<float>; ++i) wide[i] = from[i];
  return wide;
#endif
}

// The sum and, one by one, the chains of as many rows as there are lanes.
template <size_t Chains>
LIMBECK_INLINE F32 with_chains(F32 sum, const float (*chains)[Chains]) {
  constexpr int64_t lanes = kLanes<float>;
#pragma GCC unroll 4
  for (size_t first = 0; first < Chains; first += lanes) {
    F32 of_chain[lanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < lanes; ++i) of_chain[i] = load(chains[i] + first);
    transpose_step<float, lanes / 2>(of_chain);
#pragma GCC unroll 16
    for (int64_t i = 0; i < lanes; ++i) sum += of_chain[i];
  }
  return sum;
}

// Words [words][lanes] of rows [row, row + count) and columns [column, column + depth); lanes without a row are 0.
template <CodeKind kind>
void gather_as_stored(const QuantizedView& v, int64_t row, int64_t count, int64_t column, int64_t depth,
                      uint32_t* words) {
  constexpr int64_t lanes = kLanes<float>;
  const int64_t stride = row_bytes<kind>(v);
  const auto* first = static_cast<const uint8_t*>(v.codes) + row * stride + bytes_before<kind>(v, column);
  // kInt4 has whole words in memory, nf4 in whole blocks; a row of int8 may end within a word.
  const int64_t bytes = kind == CodeKind::kInt8 ? depth : words_of_codes(v.format.bits, depth) * kWordBytes;
  const int64_t block = lanes * kWordBytes;
  int64_t byte = 0;
  for (; count == lanes && byte + block <= bytes; byte += block, words += lanes * lanes) {
    F32 part[lanes];
#pragma GCC unroll 16
    for (int64_t i = 0; i < lanes; ++i) __builtin_memcpy(&part[i], first + i * stride + byte, sizeof part[i]);
    transpose_step<float, lanes / 2>(part);
#pragma GCC unroll 16
    for (int64_t i = 0; i < lanes; ++i) __builtin_memcpy(words + i * lanes, &part[i], sizeof part[i]);
  }
  for (; byte < bytes; byte += kWordBytes, words += lanes) {
    const auto have = static_cast<size_t>(std::min(kWordBytes, bytes - byte));
    for (int64_t i = 0; i < lanes; ++i) {
      uint32_t word = 0;
      if (i < count && have == sizeof word) {
        __builtin_memcpy(&word, first + i * stride + byte, sizeof word);
      } else if (i < count) {
        for (size_t j = 0; j < have; ++j) word |= uint32_t{first[i * stride + byte + static_cast<int64_t>(j)]} << 8 * j;
      }
      words[i] = word;
    }
  }
}

// The same; codes of 2 and 3 bits as nibbles, where int4 would have them. `column` begins a block of codes.
template <CodeKind kind>
void gather_words(const QuantizedView& v, int64_t row, int64_t count, int64_t column, int64_t depth, uint32_t* words) {
  gather_as_stored<kind>(v, row, count, column, depth, words);
  if constexpr (kind == CodeKind::kInt4) {
    const int64_t stored = words_of_codes(v.format.bits, depth), blocks = rounded_up_quotient(depth, kBlockCodes);
    if (v.format.bits == 3) widen_in_place<3>(words, stored, blocks);
    if (v.format.bits == 2) widen_in_place<2>(words, stored, blocks);
  }
}

struct LaneScales {
  F32 scale, zero;
};

// Scales and zeros [runs][lanes] of a block of columns, a run having one scale a row; lanes without a row are 0.
struct ScaleRuns {
  static constexpr int64_t kMost = 256 / kSmallestGroup;
  alignas(64) float scale[kMost][kLanes<float>], zero[kMost][kLanes<float>];

  LIMBECK_INLINE LaneScales of(int64_t run) const { return {load(scale[run]), load(zero[run])}; }
};

// Calls body(run, first, end) for the runs of [column, column + depth), counted from `column`.
template <CodeKind kind, class Body>
LIMBECK_INLINE void for_scale_runs(const QuantizedView& v, int64_t column, int64_t depth, Body body) {
  for (int64_t k = 0, run = 0; k < depth; ++run) {
    const int64_t end = std::min(depth, end_of_scale<kind>(v, 0, column + k) - column);
    body(run, k, end);
    k = end;
  }
}

template <CodeKind kind>
LIMBECK_INLINE void gather_scales_of(const QuantizedView& v, int64_t row, int64_t count, int64_t column, int64_t depth,
                                     const Levels& levels, ScaleRuns& to) {
  for_scale_runs<kind>(v, column, depth, [&](int64_t run, int64_t begin, int64_t) {
    for (int64_t i = 0; i < kLanes<float>; ++i) {
      const ValueScale of_lane = i < count ? scale_at<kind>(v, row + i, column + begin, levels.dynamic) : ValueScale{};
      to.scale[run][i] = of_lane.scale;
      to.zero[run][i] = of_lane.zero;
    }
  });
}

// Their storage is asked for once, and not for each lane.
template <CodeKind kind>
void gather_scales(const QuantizedView& v, int64_t row, int64_t count, int64_t column, int64_t depth,
                   const Levels& levels, ScaleRuns& to) {
  QuantizedView known = v;
  if (v.scale_storage == Storage::kFloat32) {
    known.scale_storage = Storage::kFloat32;
    gather_scales_of<kind>(known, row, count, column, depth, levels, to);
  } else if (v.scale_storage == Storage::kBFloat16) {
    known.scale_storage = Storage::kBFloat16;
    gather_scales_of<kind>(known, row, count, column, depth, levels, to);
  } else {
    known.scale_storage = Storage::kFloat16;
    gather_scales_of<kind>(known, row, count, column, depth, levels, to);
  }
}

// Levels by their numbers, of which the low four bits count.
LIMBECK_INLINE F32 nf4_levels(U32 codes, const float* levels) {
#if defined(__AVX512F__)
  return (F32)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)codes, _mm512_loadu_ps(levels));
#elif defined(__AVX2__)
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels), (__m256i)codes);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(levels + 8), (__m256i)codes);
  return (F32)_mm256_blendv_ps(low, high, (__m256)(codes << 28));  // the sign is bit 3
#else
  F32 values;
  for (int64_t i = 0; i < kLanes<float>; ++i) values[i] = levels[codes[i] & 15u];
  return values;
#endif
}

// Code `place`, of four bits, of each word.
LIMBECK_INLINE F32 code_of_word(U32 words, int place) {
#if defined(__AVX512F__)  // a table of sixteen needs no mask, of an index the low four bits count
  const F32 codes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return (F32)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)(words >> (4 * place)), (__m512)codes);
#else
  return __builtin_convertvector((I32)(words >> (4 * place) & 15u), F32);
#endif
}

// The values of code `place` of each word.
template <CodeKind kind>
LIMBECK_INLINE F32 values_of_words(U32 words, int place, const LaneScales& s, const Levels& levels) {
  if constexpr (kind == CodeKind::kInt8) {
    return __builtin_convertvector((I32)(words << (24 - 8 * place)) >> 24, F32) * s.scale;
  } else if constexpr (kind == CodeKind::kInt4) {
    return (code_of_word(words, place) - s.zero) * s.scale;
  } else {
    return nf4_levels(words >> (place / 2 * 8 + (place % 2 == 0 ? 4 : 0)), levels.nf4) * s.scale;
  }
}

// Values of rows [row, row + count) and columns [column, column + depth), 256 at most: put(eight, values) of each eight
// columns, a vector of rows each; 0 behind the last column.
template <CodeKind kind, class Put>
LIMBECK_INLINE void unpack_side_by_side(const QuantizedView& v, int64_t row, int64_t count, int64_t column,
                                        int64_t depth, const Levels& levels, uint32_t* words, const Put& put) {
  constexpr int64_t lanes = kLanes<float>;
  constexpr int per_word = kValuesOfWord<kind>;
  static_assert(kSmallestGroup % kEight == 0 && kNf4Block % kEight == 0);
  ScaleRuns runs;
  gather_words<kind>(v, row, count, column, depth, words);
  gather_scales<kind>(v, row, count, column, depth, levels, runs);
  for_scale_runs<kind>(v, column, depth, [&](int64_t run, int64_t begin, int64_t end) {
    const LaneScales scales = runs.of(run);
    int64_t k = begin;
    F32 values[kEight];
    for (; k + kEight <= end; k += kEight) {
#pragma GCC unroll 8
      for (int i = 0; i < kEight; ++i)
        values[i] = values_of_words<kind>(load(words + (k + i) / per_word * lanes), i % per_word, scales, levels);
      put(k / kEight, values);
    }
    if (k == end) return;
    F32 last[kEight] = {};
    for (int i = 0; k + i < end; ++i)
      last[i] = values_of_words<kind>(load(words + (k + i) / per_word * lanes), i % per_word, scales, levels);
    put(k / kEight, last);
  });
}

}  // namespace limbeck::kernels::LIMBECK_ISA
