// C = A B (+ bias), where B is a quantized matrix or its transpose. With few rows of A codes go straight to the sums;
// with more, rectangles of B are widened while they are needed.
#include "kernels/quantized/quantized_linear_loops.h"

#include "kernels/cpu/widened_product.h"
#include "kernels/quantized/few_rows_product.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kTileCols = 256;
constexpr int64_t kWideValues = kTileCols * 512;  // of a rectangle

template <class T>
class SharedProduct {
  using Words = WordsOf<T>;
  using Order = ChainedSums<Words>;
  using Few = FewRowsProduct<Words>;
  static constexpr bool kPaired = Words::kOfPair == 1;
  // The transpose of the matrix has an order that few rows have too. Gradients have none to keep: floats are quicker in
  // larger tiles, pairs in smaller blocks, because the floats that they are made of stay in the second cache.
  using OfGradients = ChainedSums<Words, Order::kMostWords / 2>;
  using Transposed = WidenedProduct<kTileCols, Order>;
  using Product = std::conditional_t<kPaired, WidenedProduct<kTileCols, OfGradients>, WidenedProduct<kTileCols>>;
  static_assert(Product::kDepth * kTileCols <= kWideValues);
  // Fewer rows of x do not repay unpacking: where sums of so many do not fit, they are taken in two parts.
  static constexpr int64_t kUnpackedFrom = 17;

 public:
  static constexpr int64_t kScratchBytes =
      std::max<int64_t>((std::max(Product::scratch_floats(), Transposed::scratch_floats()) + kWideValues) *
                            static_cast<int64_t>(sizeof(float)),
                        sizeof(typename Few::Scratch));

  static void share(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch) {
    const auto* x = static_cast<const T*>(g.a);
    const RoundedProduct<T> to{static_cast<T*>(g.c), g.n, static_cast<const T*>(g.bias)};
    const auto fill_a = [&](float* a, int64_t stride, int64_t m, int64_t rows, int64_t k, int64_t depth) {
      Words::fill_panels(a, stride, x + m * g.k + k, g.k, rows, depth, Order::kStripWords);
    };
    if (!g.transposed) {
      const auto fill_b = [&](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
        fill_plain(g, b, stride, k, depth, n, cols);
      };
      return Product::share(m0, m1, n0, n1, g.k, to, scratch, fill_a, fill_b);
    }
    if (m1 - m0 < kUnpackedFrom && lies_side_by_side(g.b)) {
      const int64_t parts = rounded_up_quotient(m1 - m0, Few::kMostRows), rows = rounded_up_quotient(m1 - m0, parts);
      for (int64_t m = m0; m < m1; m += rows) {
        const FewRows<T> few{g.b, {g.nf4_levels, g.dynamic_levels}, x + m * g.k, to.c + m * g.n, g.n, to.bias, n0, n1};
        Few::share(few, std::min(rows, m1 - m), scratch);
      }
      return;
    }
    const auto fill_b = [&](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
      fill_transposed(g, b, stride, k, depth, n, cols);
    };
    Transposed::share(m0, m1, n0, n1, g.k, to, scratch, fill_a, fill_b);
  }

 private:
  // What is behind B's panels: near where they are few.
  static float* behind_panels(float* b, int64_t stride, int64_t cols) { return b + panels<float>(cols) * stride; }

  // Rows [k, k + depth) and columns [n, n + cols) of the matrix into panels.
  static void fill_plain(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth, int64_t n,
                         int64_t cols) {
    constexpr int64_t lanes = kLanes<float>, width = kWidth<float>;
    float* wide = behind_panels(b, stride, cols);
    g.dequantize(g.b, k, k + depth, n, n + cols, wide);
    if constexpr (!kPaired) {
      if constexpr (std::is_same_v<T, BFloat16Bits>) {
        for (int64_t i = 0; i < depth * cols; i += lanes)
          store_narrow_some(wide + i, Words::rounded(load_wide_some(wide + i, depth * cols - i)), depth * cols - i);
      }
      return to_panels(b, stride, wide, cols, depth, cols);
    }
    for (int64_t c = 0; c < panels<float>(cols) * width; c += lanes) {
      float* values = b + c / width * stride + c % width;
      const int64_t have = std::max<int64_t>(cols - c, 0);
      for (int64_t i = 0; i < depth; i += kEight) {
        F32 of_rows[kEight];
        for (int64_t j = 0; j < kEight; ++j)
          of_rows[j] = i + j < depth ? load_wide_some(wide + (i + j) * cols + c, have) : F32{};
        put_eight<OfGradients>(values, i / kEight, of_rows);
      }
      fill_up<OfGradients>(values, depth);
    }
  }

  // Rows [n, n + cols) of the matrix as columns of panels.
  static void fill_transposed(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth, int64_t n,
                              int64_t cols) {
    float* wide = behind_panels(b, stride, cols);
    if (!lies_side_by_side(g.b)) return fill_one_by_one(g, b, stride, k, depth, n, cols, wide);
    const CodeKind kind = g.b.format.kind;
    const auto fill = kind == CodeKind::kInt8   ? fill_side_by_side<CodeKind::kInt8>
                      : kind == CodeKind::kInt4 ? fill_side_by_side<CodeKind::kInt4>
                                                : fill_side_by_side<CodeKind::kNf4>;
    fill(g, b, stride, k, depth, n, cols, reinterpret_cast<uint32_t*>(wide));
  }

  // `words` is scratch for those of one vector of rows.
  template <CodeKind kind>
  static void fill_side_by_side(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth,
                                int64_t n, int64_t cols, uint32_t* words) {
    constexpr int64_t lanes = kLanes<float>, width = kWidth<float>, most = 256;
    static_assert(most % Order::kStrip == 0);
    for (int64_t c = 0; c < panels<float>(cols) * width; c += lanes) {
      const int64_t count = std::clamp<int64_t>(cols - c, 0, lanes);
      float* values = b + c / width * stride + c % width;
      for (int64_t at = 0; at < depth; at += most) {
        float* of_part = values + Order::place(at / 2) * width;
        unpack_side_by_side<kind>(
            g.b, n + c, count, k + at, std::min(most, depth - at), {g.nf4_levels, g.dynamic_levels},
            words, [&](int64_t eight, const F32(&eight_columns)[kEight]) __attribute__((always_inline)) {
              put_eight<Order>(of_part, eight, eight_columns);
            });
      }
      fill_up<Order>(values, depth);
    }
  }

  static void fill_one_by_one(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth, int64_t n,
                              int64_t cols, float* wide) {
    constexpr int64_t lanes = kLanes<float>, width = kWidth<float>, most = kWideValues / kTileCols;
    static_assert(most % kEight == 0);
    for (int64_t at = 0; at < depth; at += most) {
      const int64_t have = std::min(most, depth - at);
      g.dequantize(g.b, n, n + cols, k + at, k + at + have, wide);
      for (int64_t c = 0; c < panels<float>(cols) * width; c += lanes) {
        float* values = b + c / width * stride + c % width;
        for (int64_t i = 0; i < have; i += kEight) {
          F32 columns[kEight] = {};
          for (int64_t lane = 0; lane < std::min(lanes, cols - c); ++lane) {
            const float* row = wide + (c + lane) * have + i;
            for (int64_t j = 0; j < std::min<int64_t>(kEight, have - i); ++j) columns[j][lane] = row[j];
          }
          put_eight<Order>(values, (at + i) / kEight, columns);
        }
        if (at + have == depth) fill_up<Order>(values, depth);
      }
    }
  }

  // A vector of rows each of the eight columns from 8 `eight` on.
  template <class Sums>
  static LIMBECK_INLINE void put_eight(float* values, int64_t eight, const F32 (&columns)[kEight]) {
    float* to = values + Sums::place(eight * kEight / 2) * kWidth<float>;
#pragma GCC unroll 4
    for (int64_t i = 0; i < kEight / 2; ++i) {
      const int64_t first = Sums::first_of_pair(i);
      Words::put(to + Sums::place(i) * kWidth<float>, columns[first], columns[first + Sums::kTurns]);
    }
  }

  // Zeros behind the eights that the depth has begun, up to a whole strip.
  template <class Sums>
  static void fill_up(float* values, int64_t depth) {
    for (int64_t eight = rounded_up_quotient(depth, kEight); eight * kEight % Sums::kStrip != 0; ++eight)
      put_eight<Sums>(values, eight, {});
  }
};

// What this build has a body for: where the processor multiplies bfloat16, that alone differs.
template <class T>
inline constexpr bool kHasBody =
#if defined(__AVX512BF16__)
    std::is_same_v<T, BFloat16Bits>;
#else
    sizeof(T) < sizeof(double);
#endif

void share(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  with_storage(g.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (kHasBody<T>) SharedProduct<T>::share(g, m0, m1, n0, n1, static_cast<float*>(scratch));
  });
}

}  // namespace

const QuantizedLoops quantized_loops = {SharedProduct<BFloat16Bits>::kScratchBytes, share};

}  // namespace limbeck::kernels::LIMBECK_ISA
