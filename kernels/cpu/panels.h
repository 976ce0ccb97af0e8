// Small dense products on matrices in panel form, for *_loops.cpp.
//
// Panel form of Z [rows, cols]: columns in groups of kWidth, each group stored row by row: [cols /
// kWidth][rows][kWidth]. The left operand, the right operand and the product all have it, so a product can be the next
// one's operand unmoved. Widening from float16 / bfloat16 and transposing happen while a matrix is brought into this
// form.
//
// Every element of a product is one chain of fused multiply-adds over k in ascending order, added to what was there.
// Its bits therefore depend neither on the number of threads nor on what other rows or columns are computed beside it.
#pragma once
#include <algorithm>
#include <type_traits>

#include "kernels/cpu/simd.h"

namespace limbeck::kernels::LIMBECK_ISA {

template <class T>
inline constexpr int64_t kWidth = 2 * kLanes<T>;  // columns of one panel
#if defined(__AVX512F__)
inline constexpr int64_t kRows = 14;  // rows of one register tile
#elif defined(__AVX2__)
inline constexpr int64_t kRows = 6;
#else
inline constexpr int64_t kRows = 4;
#endif

template <class T>
constexpr int64_t panels(int64_t cols) {
  return (cols + kWidth<T> - 1) / kWidth<T>;
}

// ---- into panel form ----------------------------------------------------------------------------------------------

// Z = source [rows, cols] (contiguous columns). Panels lie `panel_stride` elements apart.
template <class Acc, class T>
void to_panels(Acc* panel, int64_t panel_stride, const T* source, int64_t row_stride, int64_t rows, int64_t cols) {
  for (int64_t c = 0; c < cols; c += kWidth<Acc>, panel += panel_stride) {
    const int64_t first = std::min(cols - c, kLanes<Acc>);
    const int64_t second = std::max<int64_t>(std::min(cols - c - kLanes<Acc>, kLanes<Acc>), 0);
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = source + r * row_stride + c;
      store(panel + r * kWidth<Acc>, load_wide_some(from, first));
      store(panel + r * kWidth<Acc> + kLanes<Acc>,
            second > 0 ? load_wide_some(from + kLanes<Acc>, second) : Vec<Acc>{});
    }
  }
}

// One step of the in-register transpose: exchanges the off-diagonal blocks of size Step.
template <class Acc, int64_t Step>
LIMBECK_INLINE void transpose_step(Vec<Acc>* v) {
  constexpr int64_t lanes = kLanes<Acc>;
#ifndef __clang__
  using Index = std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t>;
  Vec<Index> low, high;
  for (int64_t i = 0; i < lanes; ++i) {
    low[i] = static_cast<Index>((i & Step) ? lanes + i - Step : i);
    high[i] = static_cast<Index>((i & Step) ? lanes + i : i + Step);
  }
#pragma GCC unroll 16
  for (int64_t i = 0; i < lanes; ++i) {
    if (i & Step) continue;
    const Vec<Acc> a = v[i], b = v[i + Step];
    v[i] = __builtin_shuffle(a, b, low);
    v[i + Step] = __builtin_shuffle(a, b, high);
  }
#else  // clang has no shuffle by variable index
  for (int64_t i = 0; i < lanes; ++i) {
    for (int64_t lane = 0; !(i & Step) && lane < lanes; ++lane) {
      if (lane & Step) continue;
      const Acc other = v[i][lane + Step];
      v[i][lane + Step] = v[i + Step][lane];
      v[i + Step][lane] = other;
    }
  }
#endif
  if constexpr (Step > 1) transpose_step<Acc, Step / 2>(v);
}

// Z = source^T with source [cols, rows] (contiguous along the rows of Z).
template <class Acc, class T>
void to_panels_transposed(Acc* panel, int64_t panel_stride, const T* source, int64_t row_stride, int64_t rows,
                          int64_t cols) {
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t c = 0; c < panels<Acc>(cols) * kWidth<Acc>; c += lanes) {
    Acc* to = panel + (c / kWidth<Acc>)*panel_stride + c % kWidth<Acc>;
    const int64_t have = std::clamp<int64_t>(cols - c, 0, lanes);
    for (int64_t r = 0; r < rows; r += lanes) {
      const int64_t count = std::min(rows - r, lanes);
      Vec<Acc> block[lanes];
      if (have == lanes && count == lanes) {
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) block[i] = load_wide(source + (c + i) * row_stride + r);
        transpose_step<Acc, lanes / 2>(block);
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) store(to + (r + i) * kWidth<Acc>, block[i]);
      } else {
        for (int64_t i = 0; i < lanes; ++i) {
          block[i] = i < have ? load_wide_some(source + (c + i) * row_stride + r, count) : Vec<Acc>{};
        }
        transpose_step<Acc, lanes / 2>(block);
        for (int64_t i = 0; i < count; ++i) store(to + (r + i) * kWidth<Acc>, block[i]);
      }
    }
  }
}

// ---- the product --------------------------------------------------------------------------------------------------

// C [Rows, kWidth] (+)= A [Rows, k] B [k, kWidth]
template <class Acc, int Rows>
__attribute__((noinline)) void multiply_tile(const Acc* a, int64_t a_stride, const Acc* b, Acc* c, int64_t k,
                                             bool accumulate) {
  constexpr int64_t width = kWidth<Acc>, lanes = kLanes<Acc>;
  Vec<Acc> sum[Rows][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    sum[r][0] = sum[r][1] = Vec<Acc>{};
  }
  for (; k > 0; k -= width, a += a_stride) {
    const int64_t steps = std::min(k, width);
    for (int64_t i = 0; i < steps; ++i, b += width) {
      const Vec<Acc> b0 = load(b), b1 = load(b + lanes);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const Vec<Acc> x = splat(a[r * width + i]);
        sum[r][0] = fused(x, b0, sum[r][0]);
        sum[r][1] = fused(x, b1, sum[r][1]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    // Added at the end and not carried through the chain: the error grows with the block, not with the whole k.
    store(c + r * width, accumulate ? load(c + r * width) + sum[r][0] : sum[r][0]);
    store(c + r * width + lanes, accumulate ? load(c + r * width + lanes) + sum[r][1] : sum[r][1]);
  }
}

template <class Acc, int Rows>
inline void multiply_rows(int64_t rows, const Acc* a, int64_t a_stride, const Acc* b, Acc* c, int64_t k, bool add) {
  if (rows == Rows) return multiply_tile<Acc, Rows>(a, a_stride, b, c, k, add);
  if constexpr (Rows > 1) multiply_rows<Acc, Rows - 1>(rows, a, a_stride, b, c, k, add);
}

// C [m, n] (+)= A [m, k] B [k, n], all in panel form; strides are the distances between panels.
template <class Acc>
void multiply(const Acc* a, int64_t a_stride, const Acc* b, int64_t b_stride, Acc* c, int64_t c_stride, int64_t m,
              int64_t n, int64_t k, bool accumulate) {
  for (int64_t p = 0; p < panels<Acc>(n); ++p) {
    for (int64_t r = 0; r < m; r += kRows) {
      multiply_rows<Acc, kRows>(std::min(kRows, m - r), a + r * kWidth<Acc>, a_stride, b + p * b_stride,
                                c + p * c_stride + r * kWidth<Acc>, k, accumulate);
    }
  }
}

}  // namespace limbeck::kernels::LIMBECK_ISA
