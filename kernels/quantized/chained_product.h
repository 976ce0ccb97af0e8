// In which order a product with the transpose of a quantized matrix is summed up, for *_loops.cpp, and the tiles that
// do it for many rows of x; few_rows_product.h does it for few, to the same bits. A block of columns is sixteen chains
// of fused sums, one for each of the lanes that a strip has (product_words.h). The chains of a block are added to the
// sum one by one.
#pragma once
#include <algorithm>

#include "kernels/quantized/product_words.h"

namespace limbeck::kernels::LIMBECK_ISA {

// Words: product_words.h; BlockWords: of a row of x and a block.
template <class Words, int64_t BlockWords = 512>
struct ChainedSums {
  static constexpr int64_t kMostWords = BlockWords;
  static constexpr int64_t kDepth = 2 * BlockWords / Words::kOfPair;  // columns of a block
  static constexpr int64_t kTileRows = 256;                           // a tile's operands stay in the second cache
  static constexpr int64_t kChains = kPairs, kTurns = Words::kTurns, kStrip = 2 * kChains * kTurns;
  static constexpr int64_t kTurnWords = kChains * Words::kOfPair, kStripWords = kTurns * kTurnWords;
  static constexpr int64_t kWordsOfChain = BlockWords / kChains;

  // Pairs by their numbers: eight neighbouring columns have four, and so their first columns of the eight.
  static constexpr int64_t first_of_pair(int64_t pair) { return pair / kTurns * 2 * kTurns + pair % kTurns; }
  // In which row of B's panels the words of a pair begin, chain by chain; chains that are shorter leave room at their
  // ends. Within the four pairs of eight columns, and within strips, places add up.
  static constexpr int64_t place(int64_t pair) {
    const int64_t chain = pair / kTurns % kChains, turn = pair / (kTurns * kChains) * kTurns + pair % kTurns;
    return chain * kWordsOfChain + turn * Words::kOfPair;
  }
  static constexpr int64_t strips(int64_t depth) { return (depth + kStrip - 1) / kStrip; }
  static constexpr int64_t panel_rows(int64_t) { return kMostWords; }

  // C [m, n] (+)= A [m, depth] B [depth, n], all in panel form, A and B in words, B in places; both have 0 behind the
  // depth, up to a whole strip.
  static void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                       int64_t m, int64_t n, int64_t depth, bool accumulate) {
    const int64_t parts = (m + kMostRows - 1) / kMostRows;
    for (int64_t p = 0; p < panels<float>(n); ++p) {
      for (int64_t i = 0; i < parts; ++i) {  // equal shares: a last one of a row or two would wait for its sums
        const int64_t from = i * m / parts, rows = (i + 1) * m / parts - from;
        some_rows<kMostRows>(rows, a + from * kWidth<float>, a_stride, b + p * b_stride,
                             c + p * c_stride + from * kWidth<float>, strips(depth) * kTurns, accumulate);
      }
    }
  }

 private:
#if defined(__AVX512F__)
  static constexpr int kMostRows = 6;  // sums of blocks and of chains are all in registers
#else
  static constexpr int kMostRows = static_cast<int>(limbeck::kernels::LIMBECK_ISA::kRows);
#endif

  template <int Rows>
  static void some_rows(int64_t rows, const float* a, int64_t a_stride, const float* b, float* c, int64_t turns,
                        bool accumulate) {
    if (rows == Rows) return tile<Rows>(a, a_stride, b, c, turns, accumulate);
    if constexpr (Rows > 1) some_rows<Rows - 1>(rows, a, a_stride, b, c, turns, accumulate);
  }

  template <int Rows>
  static __attribute__((noinline)) void tile(const float* a, int64_t a_stride, const float* b, float* c, int64_t turns,
                                             bool accumulate) {
    constexpr int64_t width = kWidth<float>, lanes = kLanes<float>;
    F32 total[Rows][2];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      total[r][0] = accumulate ? load(c + r * width) : F32{};
      total[r][1] = accumulate ? load(c + r * width + lanes) : F32{};
    }
    for (int64_t chain = 0; chain < kChains; ++chain, b += kWordsOfChain * width) {
      F32 sum[Rows][2];
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) sum[r][0] = sum[r][1] = F32{};
      const float* of_b = b;
      int64_t word = chain * Words::kOfPair;
      for (int64_t i = 0; i < turns; ++i, word += kTurnWords, of_b += Words::kOfPair * width) {
        const float* of_x = a + word / width * a_stride + word % width;
#pragma GCC unroll 2
        for (int k = 0; k < Words::kOfPair; ++k) {
          const F32 b0 = load(of_b + k * width), b1 = load(of_b + k * width + lanes);
#pragma GCC unroll 16
          for (int r = 0; r < Rows; ++r) {
            const F32 x = Words::repeated(of_x + r * width + k);
            sum[r][0] = Words::add(x, b0, sum[r][0]);
            sum[r][1] = Words::add(x, b1, sum[r][1]);
          }
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        total[r][0] += sum[r][0];
        total[r][1] += sum[r][1];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      store(c + r * width, total[r][0]);
      store(c + r * width + lanes, total[r][1]);
    }
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
