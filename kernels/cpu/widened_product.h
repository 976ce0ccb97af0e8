// C = A B (+ bias) in tiles that stay in cache, for *_loops.cpp: the caller brings parts of A and B into float32 panels
// as they are needed, whatever they are stored as; C is rounded once at the end.
#pragma once
#include <algorithm>

#include "kernels/cpu/panels.h"

namespace limbeck::kernels::LIMBECK_ISA {

template <class T>
struct RoundedProduct {
  T* c;
  int64_t ldc;
  const T* bias;  // or nullptr
};

// How the sums of a tile are taken: over a whole pass at once.
struct WholeSums {
  static constexpr int64_t kDepth = 256;  // k of one pass: a panel of B then fills two thirds of the first-level cache
  static constexpr int64_t kTileRows = 504;  // 36 register tiles of 14 rows, 84 of 6

  static constexpr int64_t kMostWords = kDepth;                         // of a row of A
  static constexpr int64_t panel_rows(int64_t depth) { return depth; }  // of B, which `depth` rows take
  static void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t c_stride,
                       int64_t m, int64_t n, int64_t depth, bool accumulate) {
    limbeck::kernels::LIMBECK_ISA::multiply(a, a_stride, b, b_stride, c, c_stride, m, n, depth, accumulate);
  }
};

// TileCols: columns of a tile of C at most.
template <int64_t TileCols, class Sums = WholeSums>
struct WidenedProduct {
  static constexpr int64_t kDepth = Sums::kDepth, kTileRows = Sums::kTileRows;
  static constexpr int64_t kPadRows = 3;  // or one more: keeps the panels off each other's cache sets

  static constexpr int64_t scratch_floats() {
    return panels<float>(TileCols) * kWidth<float> * (kTileRows + kPadRows + 1 + Sums::panel_rows(kDepth)) +
           panels<float>(Sums::kMostWords) * kWidth<float> * (kTileRows + kPadRows + 1);
  }

  // Rows [m0, m1) and columns [n0, n1) of C over the depth k. fill_a(panels, stride, m, rows, k, depth) brings A from
  // row m and column k on into panel form, fill_b(panels, stride, k, depth, n, cols) likewise B.
  template <class T, class FillA, class FillB>
  static void share(int64_t m0, int64_t m1, int64_t n0, int64_t n1, int64_t k, const RoundedProduct<T>& to,
                    float* scratch, const FillA& fill_a, const FillB& fill_b) {
    // Few rows (generation): the time goes into widening B, so each panel is used while it is in the first-level cache.
    const int64_t cols = m1 - m0 <= 2 * kRows ? kWidth<float> : TileCols;
    for (int64_t n = n0; n < n1; n += cols) {
      for (int64_t m = m0; m < m1; m += kTileRows) {
        tile(m, std::min(m + kTileRows, m1), n, std::min(n + cols, n1), k, to, scratch, fill_a, fill_b);
      }
    }
  }

 private:
  template <class T, class FillA, class FillB>
  static void tile(int64_t m0, int64_t m1, int64_t n0, int64_t n1, int64_t k, const RoundedProduct<T>& to,
                   float* scratch, const FillA& fill_a, const FillB& fill_b) {
    constexpr int64_t width = kWidth<float>, lanes = kLanes<float>;
    const int64_t m = m1 - m0, n = n1 - n0;
    const int64_t row_stride = (m + kPadRows + ((m + kPadRows) % 16 == 0)) * width;
    float* c = scratch;
    float* a = c + panels<float>(n) * row_stride;
    float* b = a + panels<float>(Sums::kMostWords) * row_stride;
    for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
      const int64_t depth = std::min(kDepth, k - k0), b_stride = Sums::panel_rows(depth) * width;
      fill_a(a, row_stride, m0, m, k0, depth);
      fill_b(b, b_stride, k0, depth, n0, n);
      Sums::multiply(a, row_stride, b, b_stride, c, row_stride, m, n, depth, k0 > 0);
    }
    for (int64_t j = 0; j < n; j += lanes) {
      const int64_t count = std::min(lanes, n - j);
      const F32 bias = to.bias ? load_wide_some(to.bias + n0 + j, count) : F32{};
      const float* from = c + (j / width) * row_stride + j % width;
      for (int64_t i = 0; i < m; ++i) {
        store_narrow_some(to.c + (m0 + i) * to.ldc + n0 + j, load(from + i * width) + bias, count);
      }
    }
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
