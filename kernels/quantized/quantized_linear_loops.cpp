// C = A B (+ bias), where B is a quantized matrix or its transpose: rectangles of it are widened while they are needed.
#include "kernels/quantized/quantized_linear_loops.h"

#include "kernels/cpu/panels.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kDepth = 256;     // k of one pass
constexpr int64_t kTileRows = 504;  // 36 register tiles of 14 rows, 84 of 6
constexpr int64_t kTileCols = 256;
constexpr int64_t kPadRows = 3;  // keeps the panels off each other's cache sets

constexpr int64_t scratch_floats() {
  return panels<float>(kTileCols) * kWidth<float> * (kTileRows + kPadRows + kDepth) +
         panels<float>(kDepth) * kWidth<float> * (kTileRows + kPadRows) + kTileCols * kDepth;
}

// C [m0..m1, n0..n1] over the whole depth.
template <class T>
void tile(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch) {
  constexpr int64_t width = kWidth<float>, lanes = kLanes<float>;
  const int64_t m = m1 - m0, n = n1 - n0;
  const int64_t row_stride = (m + kPadRows) * width;
  float* c = scratch;
  float* a = c + panels<float>(n) * row_stride;
  float* b = a + panels<float>(kDepth) * row_stride;
  float* wide = b + panels<float>(n) * kDepth * width;
  for (int64_t k0 = 0; k0 < g.k; k0 += kDepth) {
    const int64_t depth = std::min(kDepth, g.k - k0);
    to_panels(a, row_stride, static_cast<const T*>(g.a) + m0 * g.k + k0, g.k, m, depth);
    if (g.transposed) {
      g.dequantize(g.b, n0, n1, k0, k0 + depth, wide);
      to_panels_transposed(b, depth * width, wide, depth, depth, n);
    } else {
      g.dequantize(g.b, k0, k0 + depth, n0, n1, wide);
      to_panels(b, depth * width, wide, n, depth, n);
    }
    multiply(a, row_stride, b, depth * width, c, row_stride, m, n, depth, k0 > 0);
  }
  for (int64_t j = 0; j < n; j += lanes) {
    const int64_t count = std::min(lanes, n - j);
    const F32 bias = g.bias ? load_wide_some(static_cast<const T*>(g.bias) + n0 + j, count) : F32{};
    const float* from = c + (j / width) * row_stride + j % width;
    for (int64_t i = 0; i < m; ++i) {
      store_narrow_some(static_cast<T*>(g.c) + (m0 + i) * g.n + n0 + j, load(from + i * width) + bias, count);
    }
  }
}

void share(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  // Few rows (generation): each panel of B is used while it is in the first-level cache.
  const int64_t cols = m1 - m0 <= 2 * kRows ? kWidth<float> : kTileCols;
  with_storage(g.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) == sizeof(double))
      return;
    else {
      for (int64_t n = n0; n < n1; n += cols) {
        for (int64_t m = m0; m < m1; m += kTileRows) {
          tile<T>(g, m, std::min(m + kTileRows, m1), n, std::min(n + cols, n1), static_cast<float*>(scratch));
        }
      }
    }
  });
}

}  // namespace

const QuantizedLoops quantized_loops = {scratch_floats() * static_cast<int64_t>(sizeof(float)), share};

}  // namespace limbeck::kernels::LIMBECK_ISA
