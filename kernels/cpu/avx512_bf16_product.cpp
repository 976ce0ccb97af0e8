// AVX512-BF16: rows x 32 accumulators in registers, a pair of A broadcast.
#include <immintrin.h>

#include "kernels/cpu/bf16_products.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kMostRows = 14;  // 28 accumulators, two columns of B, one pair of A

template <int Rows>
__attribute__((noinline)) void vector_rows(const TileProduct& p, int64_t row) {
  __m512 sum[Rows][2];
  float* c = p.c + row * kProductBlock;
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    sum[r][0] = p.accumulate ? _mm512_loadu_ps(c + r * kProductBlock) : _mm512_setzero_ps();
    sum[r][1] = p.accumulate ? _mm512_loadu_ps(c + r * kProductBlock + 16) : _mm512_setzero_ps();
  }
  const auto* a_start = static_cast<const uint16_t*>(p.a) + row * kProductBlock;
  const auto* b_start = static_cast<const uint16_t*>(p.b);
  for (int64_t s = 0; s < p.segments; ++s) {
    const uint16_t* a = a_start + s * p.a_segment_stride;
    const uint16_t* b = b_start + s * p.b_segment_stride;
    for (int64_t k = 0; k < p.blocks; ++k, a += p.a_block_stride) {
      for (int pair = 0; pair < kProductBlock / 2; ++pair, b += 2 * kProductBlock) {
        const auto b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + kProductBlock);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
          int32_t both;
          __builtin_memcpy(&both, a + r * kProductBlock + 2 * pair, sizeof both);
          const auto x = (__m512bh)_mm512_set1_epi32(both);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    _mm512_storeu_ps(c + r * kProductBlock, sum[r][0]);
    _mm512_storeu_ps(c + r * kProductBlock + 16, sum[r][1]);
  }
}

template <int Rows>
void some_rows(const TileProduct& p, int64_t row, int64_t rows) {
  if (rows == Rows) return vector_rows<Rows>(p, row);
  if constexpr (Rows > 1) some_rows<Rows - 1>(p, row, rows);
}

}  // namespace

void avx512_bf16_product(const TileProduct& p) {
  // Equal shares: 32 rows are 11 + 11 + 10, not 14 + 14 + 4.
  const int64_t parts = (p.rows + kMostRows - 1) / kMostRows;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t from = i * p.rows / parts;
    some_rows<kMostRows>(p, from, (i + 1) * p.rows / parts - from);
  }
}

}  // namespace limbeck::kernels
