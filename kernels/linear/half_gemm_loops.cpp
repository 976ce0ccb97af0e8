// Widened to float32 in tiles that stay in cache, rounded once at the end.
#include "kernels/linear/half_gemm_loops.h"

#include "kernels/cpu/panels.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kDepth = 256;     // k of one pass: a panel of B then fills two thirds of the first-level cache
constexpr int64_t kTileRows = 504;  // 36 register tiles of 14 rows, 84 of 6
constexpr int64_t kTileCols = 512;
constexpr int64_t kPadRows = 3;  // keeps the panels off each other's cache sets

constexpr int64_t scratch_floats() {
  return panels<float>(kTileCols) * kWidth<float> * (kTileRows + kPadRows + kDepth) +
         panels<float>(kDepth) * kWidth<float> * (kTileRows + kPadRows);
}

// C [m0..m1, n0..n1] over the whole depth.
void tile(const HalfGemm& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch) {
  constexpr int64_t width = kWidth<float>, lanes = kLanes<float>;
  const int64_t m = m1 - m0, n = n1 - n0;
  const int64_t row_stride = (m + kPadRows) * width;
  float* c = scratch;
  float* a = c + panels<float>(n) * row_stride;
  float* b = a + panels<float>(kDepth) * row_stride;
  for (int64_t k0 = 0; k0 < g.k; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, g.k - k0);
    if (g.a_transposed) {
      to_panels_transposed(a, row_stride, g.a + k0 * g.lda + m0, g.lda, m, depth);
    } else {
      to_panels(a, row_stride, g.a + m0 * g.lda + k0, g.lda, m, depth);
    }
    if (g.b_transposed) {
      to_panels_transposed(b, depth * width, g.b + n0 * g.ldb + k0, g.ldb, depth, n);
    } else {
      to_panels(b, depth * width, g.b + k0 * g.ldb + n0, g.ldb, depth, n);
    }
    multiply(a, row_stride, b, depth * width, c, row_stride, m, n, depth, k0 > 0);
  }
  for (int64_t j = 0; j < n; j += lanes) {
    const int64_t count = std::min(lanes, n - j);
    const F32 bias = g.bias ? load_wide_some(g.bias + n0 + j, count) : F32{};
    const float* from = c + (j / width) * row_stride + j % width;
    for (int64_t i = 0; i < m; ++i) {
      store_narrow_some(g.c + (m0 + i) * g.ldc + n0 + j, load(from + i * width) + bias, count);
    }
  }
}

void share(const HalfGemm& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  // Few rows (generation): the time goes into widening B, so each panel is used while it is in the first-level cache.
  const int64_t cols = m1 - m0 <= 2 * kRows ? kWidth<float> : kTileCols;
  for (int64_t n = n0; n < n1; n += cols) {
    for (int64_t m = m0; m < m1; m += kTileRows) {
      tile(g, m, std::min(m + kTileRows, m1), n, std::min(n + cols, n1), static_cast<float*>(scratch));
    }
  }
}

}  // namespace

const HalfGemmLoops half_gemm_loops = {scratch_floats() * static_cast<int64_t>(sizeof(float)), share};

}  // namespace limbeck::kernels::LIMBECK_ISA
