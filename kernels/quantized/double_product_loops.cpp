#include "kernels/quantized/double_product_loops.h"

#include "kernels/cpu/simd.h"

namespace limbeck::kernels::LIMBECK_ISA {

namespace {

constexpr int64_t kWide = kLanes<double>, kStripVectors = 4, kTileRows = 4;
constexpr int64_t kStrip = kWide * kStripVectors;

// The first `count` elements; the others are zero.
LIMBECK_INLINE F64 load_some(const double* from, int64_t count) {
  F64 v{};
  __builtin_memcpy(&v, from, static_cast<uint64_t>(count) * sizeof(double));
  return v;
}

LIMBECK_INLINE void store_some(double* to, F64 v, int64_t count) {
  __builtin_memcpy(to, &v, static_cast<uint64_t>(count) * sizeof(double));
}

// Rows [row, row + kRows) of a whole strip of C.
template <int64_t kRows>
void whole_tile(const DoubleProduct& p, int64_t row, int64_t column) {
  F64 sums[kRows][kStripVectors];
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t v = 0; v < kStripVectors; ++v) sums[i][v] = load(p.c + (row + i) * p.c_stride + column + v * kWide);
  }
  for (int64_t k = 0; k < p.k; ++k) {
    F64 b[kStripVectors];
    for (int64_t v = 0; v < kStripVectors; ++v) b[v] = load(p.b + k * p.b_stride + column + v * kWide);
    for (int64_t i = 0; i < kRows; ++i) {
      const F64 a = splat(p.a[(row + i) * p.a_stride + k]);
      for (int64_t v = 0; v < kStripVectors; ++v) sums[i][v] = fused(a, b[v], sums[i][v]);
    }
  }
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t v = 0; v < kStripVectors; ++v) store(p.c + (row + i) * p.c_stride + column + v * kWide, sums[i][v]);
  }
}

// The columns behind the last whole strip, a vector at a time.
void last_columns(const DoubleProduct& p, int64_t row, int64_t column) {
  for (; column < p.n; column += kWide) {
    const int64_t count = p.n - column < kWide ? p.n - column : kWide;
    double* c = p.c + row * p.c_stride + column;
    F64 sum = load_some(c, count);
    for (int64_t k = 0; k < p.k; ++k)
      sum = fused(splat(p.a[row * p.a_stride + k]), load_some(p.b + k * p.b_stride + column, count), sum);
    store_some(c, sum, count);
  }
}

void add(const DoubleProduct& p) {
  int64_t column = 0;
  for (; column + kStrip <= p.n; column += kStrip) {
    int64_t row = 0;
    for (; row + kTileRows <= p.m; row += kTileRows) whole_tile<kTileRows>(p, row, column);
    for (; row < p.m; ++row) whole_tile<1>(p, row, column);
  }
  for (int64_t row = 0; row < p.m; ++row) last_columns(p, row, column);
}

}  // namespace

const DoubleProductLoops double_product_loops = {add};

}  // namespace limbeck::kernels::LIMBECK_ISA
