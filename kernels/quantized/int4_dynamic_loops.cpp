// A lane of a vector is a row of the matrix: of each row a word of eight codes, which meets the same eight codes of x
// in all lanes (one to four rows of x: int4_one_row.h). Products are pairs in int16, up to 32 codes of them (with VNNI
// int32); sums of a group are int32 and exact, and what they stand for is added up in float32 chain by chain, on every
// instruction set alike.
#include "kernels/quantized/int4_dynamic_loops.h"

#include "kernels/quantized/int4_one_row.h"
#include "kernels/quantized/side_by_side.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kLanesHere = kLanes<float>;
constexpr int64_t kDepth = 256;  // columns of a block
constexpr int64_t kBlocksAhead =
    3;  // that are asked for while one is multiplied: rows lie too far apart to be foreseen
constexpr int64_t kRowsAtATime = 32;  // of x
#if defined(__AVX512F__)
constexpr int kMostTogether =
    8;  // of them: a word of codes is taken apart once for all, and their sums are in registers
#else
constexpr int kMostTogether = 4;
#endif
constexpr int64_t kFewRowsOfX = 4;    // up to which each by itself is faster
constexpr int64_t kWordsOfPairs = 4;  // 32 codes: 15 * 128 * 2 * 2 * 4 is below 2^15
static_assert(kWordsOfPairs * kWordCodes == kSmallestGroup);

struct Scratch {
  alignas(64) uint32_t words[kDepth / kWordCodes * kLanesHere];
  F32 scales[kLanesHere];  // of as many groups, one after the other
  alignas(64) float chains[kRowsAtATime][kInt4Chains][kLanesHere];
#if defined(__AVX2__)
  OneRowOfInt4::Scratch few;
#endif
};

void arrange(const QuantizedView& weight, int8_t* codes, int64_t stride, int32_t* middles) {
  const int64_t group = weight.format.group(), groups = groups_of(weight);
  __builtin_memset(codes + weight.columns, 0, static_cast<size_t>(stride - weight.columns));
  for (int64_t g = 0; g < groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = g * group; i < std::min((g + 1) * group, stride); i += kSmallestGroup) {
      for (int64_t j = 0; j < kSmallestGroup; ++j) sum += codes[i + j];
    }
    middles[g] = kMiddleCode * sum;
  }
  for (int8_t* run = codes; run != codes + stride; run += kArrangedCodes) {
    int8_t was[kArrangedCodes];
    __builtin_memcpy(was, run, sizeof was);
    for (int64_t i = 0; i < kArrangedCodes / 2; ++i) {
      run[i] = was[2 * i];
      run[i + kArrangedCodes / 2] = was[2 * i + 1];
    }
  }
}

LIMBECK_INLINE uint32_t word_at(const int8_t* codes) {
  uint32_t word;
  __builtin_memcpy(&word, codes, sizeof word);
  return word;
}

#if defined(__AVX512VNNI__)  // of four codes, added to int32
using Pairs = __m512i;
LIMBECK_INLINE Pairs with_word(Pairs pairs, U32 words, const int8_t* x) {
  const U32 low = words & 0x0f0f0f0fu, high = words >> 4 & 0x0f0f0f0fu;
  pairs = _mm512_dpbusd_epi32(pairs, (__m512i)low, _mm512_set1_epi32(static_cast<int>(word_at(x))));
  return _mm512_dpbusd_epi32(pairs, (__m512i)high,
                             _mm512_set1_epi32(static_cast<int>(word_at(x + kArrangedCodes / 2))));
}
LIMBECK_INLINE I32 total(Pairs pairs) { return (I32)pairs; }
#elif defined(__AVX512BW__)
using Pairs = __m512i;
LIMBECK_INLINE Pairs with_word(Pairs pairs, U32 words, const int8_t* x) {
  const U32 low = words & 0x0f0f0f0fu, high = words >> 4 & 0x0f0f0f0fu;
  const Pairs even = _mm512_maddubs_epi16((__m512i)low, _mm512_set1_epi32(static_cast<int>(word_at(x))));
  const Pairs odd =
      _mm512_maddubs_epi16((__m512i)high, _mm512_set1_epi32(static_cast<int>(word_at(x + kArrangedCodes / 2))));
  return _mm512_add_epi16(pairs, _mm512_add_epi16(even, odd));
}
LIMBECK_INLINE I32 total(Pairs pairs) { return (I32)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }
#elif defined(__AVX2__)
using Pairs = __m256i;
LIMBECK_INLINE Pairs with_word(Pairs pairs, U32 words, const int8_t* x) {
  const U32 low = words & 0x0f0f0f0fu, high = words >> 4 & 0x0f0f0f0fu;
  const Pairs even = _mm256_maddubs_epi16((__m256i)low, _mm256_set1_epi32(static_cast<int>(word_at(x))));
  const Pairs odd =
      _mm256_maddubs_epi16((__m256i)high, _mm256_set1_epi32(static_cast<int>(word_at(x + kArrangedCodes / 2))));
  return _mm256_add_epi16(pairs, _mm256_add_epi16(even, odd));
}
LIMBECK_INLINE I32 total(Pairs pairs) { return (I32)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
#else
using Pairs = I32;
LIMBECK_INLINE Pairs with_word(Pairs pairs, U32 words, const int8_t* x) {
  for (int i = 0; i < 4; ++i) {
    const I32 low = (I32)(words >> 8 * i & 15u), high = (I32)(words >> (8 * i + 4) & 15u);
    pairs += low * int32_t{x[i]} + high * int32_t{x[kArrangedCodes / 2 + i]};
  }
  return pairs;
}
LIMBECK_INLINE I32 total(Pairs pairs) { return pairs; }
#endif

// Where the even codes of a word lie; the odd ones are half a run of arranged codes further on.
LIMBECK_INLINE int64_t place_of_word(int64_t word) {
  constexpr int64_t words = kArrangedCodes / kWordCodes;
  return word / words * kArrangedCodes + word % words * (kWordCodes / 2);
}

// The sums of products of words [begin, end) of a group with those of Rows rows of x.
template <int Rows>
LIMBECK_INLINE void sum_words(const uint32_t* words, const int8_t* x, int64_t stride, int64_t begin, int64_t end,
                              I32 (&sums)[Rows]) {
  for (int64_t w = begin; w < end; w += kWordsOfPairs) {
    Pairs pairs[Rows] = {};
    const int64_t stop = std::min(end, w + kWordsOfPairs);
    for (int64_t i = w; i < stop; ++i) {
      const U32 word = load(words + i * kLanesHere);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) pairs[r] = with_word(pairs[r], word, x + r * stride + place_of_word(i));
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sums[r] += total(pairs[r]);
  }
}

// Adds columns [k, k + depth) to the chains of rows [m, m + Rows) of x, which lie from `slot` on.
template <int Rows>
__attribute__((noinline)) void add_block(const Int4Product& p, int64_t m, int64_t k, int64_t depth, int64_t slot,
                                         Scratch& own) {
  const int64_t groups = groups_of(p.weight);
  const int8_t* x = p.codes + m * p.stride + k;
  for (int64_t begin = 0; begin < depth; begin += p.weight.format.group()) {
    const int64_t end = std::min(depth, begin + p.weight.format.group());
    I32 sums[Rows] = {};
    sum_words<Rows>(own.words, x, p.stride, begin / kWordCodes, rounded_up_quotient(end, kWordCodes), sums);
    const int64_t group = (k + begin) >> p.weight.format.group_shift;
    const F32 scale = own.scales[group % kLanesHere];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const I32 centred = sums[r] - p.middles[(m + r) * groups + group];
      float* to = own.chains[slot + r][group % kInt4Chains];
      store(to, load(to) + __builtin_convertvector(centred, F32) * scale);
    }
  }
}

// Of rows [n, n + count) of the matrix and groups [group, group + lanes); 0 where there is none.
template <class S>
LIMBECK_INLINE void gather_group_scales(const QuantizedView& v, int64_t n, int64_t count, int64_t group,
                                        F32 (&scales)[kLanesHere]) {
  const int64_t groups = groups_of(v), have = std::min(kLanesHere, groups - group);
  const auto* from = static_cast<const S*>(v.scales) + n * groups + group;
#pragma GCC unroll 16
  for (int64_t i = 0; i < kLanesHere; ++i) scales[i] = i < count ? load_wide_some(from + i * groups, have) : F32{};
  transpose_step<float, kLanesHere / 2>(scales);
}

LIMBECK_INLINE void gather_group_scales(const QuantizedView& v, int64_t n, int64_t count, int64_t group,
                                        F32 (&scales)[kLanesHere]) {
  if (v.scale_storage == Storage::kFloat32) return gather_group_scales<float>(v, n, count, group, scales);
  if (v.scale_storage == Storage::kBFloat16) return gather_group_scales<BFloat16Bits>(v, n, count, group, scales);
  gather_group_scales<Float16Bits>(v, n, count, group, scales);
}

LIMBECK_INLINE void ask_for_block(const QuantizedView& v, int64_t n, int64_t column) {
  constexpr int64_t kLine = 64;
  if (column >= v.columns) n += kLanesHere, column -= v.columns;
  if (column >= v.columns) return;
  for (int64_t i = n; i < std::min(n + kLanesHere, v.rows); ++i) {
    const auto* from = static_cast<const uint8_t*>(v.codes) + i * row_bytes<CodeKind::kInt4>(v) + column / 2;
    for (int64_t byte = 0; byte < kDepth / 2; byte += kLine) __builtin_prefetch(from + byte);
  }
}

#if defined(__AVX2__)
template <class T>
void share_of_few(const Int4Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, OneRowOfInt4::Scratch& own) {
  const auto* bias = static_cast<const T*>(p.bias);
  for (int64_t n = n0; n < n1; n += kLanesHere) {
    const int64_t columns = std::min(kLanesHere, n1 - n);
    const F32 added = bias ? load_wide_some(bias + n, columns) : F32{};
    for (int64_t m = m0; m < m1; ++m) {
      const F32 sums = OneRowOfInt4::sums(p, m, n, columns, own);
      store_narrow_some(static_cast<T*>(p.y) + m * p.n + n, sums * splat(p.scales[m]) + added, columns);
    }
  }
}
#endif

template <class T>
void share_of(const Int4Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, Scratch& own) {
#if defined(__AVX2__)
  if (m1 - m0 <= kFewRowsOfX) return share_of_few<T>(p, m0, m1, n0, n1, own.few);
#endif
  const auto* bias = static_cast<const T*>(p.bias);
  const int64_t span = kLanesHere << p.weight.format.group_shift, block = std::min(span, kDepth);
  for (int64_t n = n0; n < n1; n += kLanesHere) {
    const int64_t columns = std::min(kLanesHere, n1 - n);
    const F32 added = bias ? load_wide_some(bias + n, columns) : F32{};
    for (int64_t m = m0; m < m1; m += kRowsAtATime) {
      const int64_t rows = std::min(kRowsAtATime, m1 - m);
      for (int64_t r = 0; r < rows; ++r) __builtin_memset(own.chains[r], 0, sizeof own.chains[r]);
      for (int64_t k = 0; k < p.k; k += block) {
        const int64_t depth = std::min(block, p.k - k);
        if (k % span == 0) gather_group_scales(p.weight, n, columns, k >> p.weight.format.group_shift, own.scales);
        gather_words<CodeKind::kInt4>(p.weight, n, columns, k, depth, own.words);
        ask_for_block(p.weight, n, k + kBlocksAhead * block);
        int64_t r = 0;
        for (; r + kMostTogether <= rows; r += kMostTogether) add_block<kMostTogether>(p, m + r, k, depth, r, own);
        for (; r + 4 <= rows; r += 4) add_block<4>(p, m + r, k, depth, r, own);
        for (; r < rows; ++r) add_block<1>(p, m + r, k, depth, r, own);
      }
      for (int64_t r = 0; r < rows; ++r) {
        F32 sum{};
        for (const auto& chain : own.chains[r]) sum += load(chain);
        store_narrow_some(static_cast<T*>(p.y) + (m + r) * p.n + n, sum * splat(p.scales[m + r]) + added, columns);
      }
    }
  }
}

void share(const Int4Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  with_storage(p.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) share_of<T>(p, m0, m1, n0, n1, *static_cast<Scratch*>(scratch));
  });
}

}  // namespace

const Int4DynamicLoops int4_dynamic_loops = {arrange, static_cast<int64_t>(sizeof(Scratch)), share};

}  // namespace limbeck::kernels::LIMBECK_ISA
