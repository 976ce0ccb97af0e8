// In which order a product with the transpose of a quantized matrix is summed up, for *_loops.cpp, and the tiles that
// do it for many rows of x; few_rows_product.h does it for few, to the same bits. A block of columns is sixteen chains
// of fused sums: the two neighbours that a byte of 4-bit codes holds are in one chain, and sixteen bytes lie in as many
// lanes, so that one group's values are looked up at once. The chains of a block are added to the sum one by one.
#pragma once
#include <algorithm>

#include "kernels/quantized/product_words.h"

namespace limbeck::kernels::LIMBECK_ISA {

// Words: product_words.h
template <class Words>
struct ChainedSums {
  static constexpr int64_t kDepth = 512;     // columns of a block
  static constexpr int64_t kTileRows = 256;  // a tile's operands stay in the second cache
  static constexpr int64_t kChains = kPairs, kStrip = 2 * kChains;
  static constexpr int64_t kStripWords = kChains * Words::kOfPair;
  static constexpr int64_t kWordsOfChain = kDepth / kStrip * Words::kOfPair;

  // In which row of B's panels the words of a pair of columns begin, chain by chain; chains that are shorter leave room
  // at their ends. Within four pairs, of which the first one's number is a multiple of four, places add up.
  static constexpr int64_t place(int64_t pair) {
    return pair % kChains * kWordsOfChain + pair / kChains * Words::kOfPair;
  }
  static constexpr int64_t strips(int64_t depth) { return (depth + kStrip - 1) / kStrip; }
  static constexpr int64_t panel_rows(int64_t) { return kChains * kWordsOfChain; }

  // C [m, n] (+)= A [m, depth] B [depth, n], all in panel form, A and B in words, B in places; both have 0 behind the
  // depth, up to a whole strip.
  static void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                       int64_t m, int64_t n, int64_t depth, bool accumulate) {
    const int64_t parts = (m + kMostRows - 1) / kMostRows;
    for (int64_t p = 0; p < panels<float>(n); ++p) {
      for (int64_t i = 0; i < parts; ++i) {  // equal shares: a last one of a row or two would wait for its sums
        const int64_t from = i * m / parts, rows = (i + 1) * m / parts - from;
        some_rows<kMostRows>(rows, a + from * kWidth<float>, a_stride, b + p * b_stride,
                             c + p * c_stride + from * kWidth<float>, strips(depth), accumulate);
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
  static void some_rows(int64_t rows, const float* a, int64_t a_stride, const float* b, float* c, int64_t strips,
                        bool accumulate) {
    if (rows == Rows) return tile<Rows>(a, a_stride, b, c, strips, accumulate);
    if constexpr (Rows > 1) some_rows<Rows - 1>(rows, a, a_stride, b, c, strips, accumulate);
  }

  template <int Rows>
  static __attribute__((noinline)) void tile(const float* a, int64_t a_stride, const float* b, float* c, int64_t strips,
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
      for (int64_t i = 0; i < strips; ++i, word += kStripWords, of_b += Words::kOfPair * width) {
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
