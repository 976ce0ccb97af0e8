// C = A B (+ bias), where B is a quantized matrix or its transpose. With few rows of A codes go straight to the sums;
// with more, rectangles of B are widened while they are needed.
#include "kernels/quantized/quantized_linear_loops.h"

#include "kernels/cpu/widened_product.h"
#include "kernels/quantized/few_rows_product.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kTileCols = 256;
using Product = WidenedProduct<kTileCols>;                                                  // with the matrix
using Transposed = WidenedProduct<kTileCols, ChainedSums>;                                  // with its transpose
constexpr int64_t kWideValues = kTileCols * std::max(Product::kDepth, Transposed::kDepth);  // of a rectangle
// Fewer rows of x do not repay unpacking: up to twice kMostFewRows are taken in two parts.
constexpr int64_t kUnpackedFrom = 2 * kMostFewRows + 1;

// Rows [n, n + cols) of the matrix as columns of panels; `words` is scratch for those of one vector.
template <CodeKind kind>
void unpack_to_panels(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth, int64_t n,
                      int64_t cols, uint32_t* words) {
  constexpr int64_t lanes = kLanes<float>, width = kWidth<float>, most = 256;
  for (int64_t c = 0; c < panels<float>(cols) * width; c += lanes) {
    const int64_t count = std::clamp<int64_t>(cols - c, 0, lanes);
    float* values = b + c / width * stride + c % width;
    for (int64_t at = 0; at < depth; at += most) {
      unpack_side_by_side<kind, ChainedSums>(g.b, n + c, count, k + at, std::min(most, depth - at),
                                             {g.nf4_levels, g.dynamic_levels}, words,
                                             values + ChainedSums::place(at) * width, width);
    }
    for (int64_t i = depth; i % ChainedSums::kStrip != 0; ++i) store(values + ChainedSums::place(i) * width, F32{});
  }
}

void unpack_transposed(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth, int64_t n,
                       int64_t cols, float* wide) {
  constexpr int64_t width = kWidth<float>;
  if (!lies_side_by_side(g.b)) {
    g.dequantize(g.b, n, n + cols, k, k + depth, wide);
    __builtin_memset(b, 0, static_cast<size_t>(panels<float>(cols) * stride) * sizeof *b);
    for (int64_t c = 0; c < cols; ++c) {
      float* values = b + c / width * stride + c % width;
      for (int64_t i = 0; i < depth; ++i) values[ChainedSums::place(i) * width] = wide[c * depth + i];
    }
    return;
  }
  const CodeKind kind = g.b.format.kind;
  const auto unpack = kind == CodeKind::kInt8   ? unpack_to_panels<CodeKind::kInt8>
                      : kind == CodeKind::kInt4 ? unpack_to_panels<CodeKind::kInt4>
                                                : unpack_to_panels<CodeKind::kNf4>;
  unpack(g, b, stride, k, depth, n, cols, reinterpret_cast<uint32_t*>(wide));
}

template <class T>
void share_of(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch) {
  const auto* x = static_cast<const T*>(g.a);
  const RoundedProduct<T> to{static_cast<T*>(g.c), g.n, static_cast<const T*>(g.bias)};
  const auto fill_a = [&](float* a, int64_t stride, int64_t m, int64_t rows, int64_t k, int64_t depth) {
    to_panels(a, stride, x + m * g.k + k, g.k, rows, depth);
    constexpr int64_t strip_panels = ChainedSums::kStrip / kWidth<float>;  // a last strip is whole
    for (int64_t z = rounded_up_quotient(depth, kWidth<float>); g.transposed && z % strip_panels != 0; ++z)
      __builtin_memset(a + z * stride, 0, static_cast<size_t>(rows * kWidth<float>) * sizeof *a);
  };
  if (!g.transposed) {
    const auto fill_b = [&](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
      // Behind B's panels: near where they are few.
      float* wide = b + panels<float>(cols) * Product::kDepth * kWidth<float>;
      g.dequantize(g.b, k, k + depth, n, n + cols, wide);
      to_panels(b, stride, wide, cols, depth, cols);
    };
    return Product::share(m0, m1, n0, n1, g.k, to, scratch, fill_a, fill_b);
  }
  if (m1 - m0 < kUnpackedFrom && lies_side_by_side(g.b)) {
    const int64_t rows = m1 - m0 <= kMostFewRows ? m1 - m0 : rounded_up_quotient(m1 - m0, 2);
    for (int64_t m = m0; m < m1; m += rows) {
      const FewRows<T> few{g.b, {g.nf4_levels, g.dynamic_levels}, x + m * g.k, to.c + m * g.n, g.n, to.bias, n0, n1};
      FewRowsProduct::share(few, std::min(rows, m1 - m), scratch);
    }
    return;
  }
  const auto fill_b = [&](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
    unpack_transposed(g, b, stride, k, depth, n, cols, b + panels<float>(cols) * Transposed::kDepth * kWidth<float>);
  };
  Transposed::share(m0, m1, n0, n1, g.k, to, scratch, fill_a, fill_b);
}

void share(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  with_storage(g.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) share_of<T>(g, m0, m1, n0, n1, static_cast<float*>(scratch));
  });
}

constexpr int64_t kScratchBytes = (std::max(Product::scratch_floats(), Transposed::scratch_floats()) + kWideValues) *
                                  static_cast<int64_t>(sizeof(float));
static_assert(sizeof(FewRowsProduct::Scratch) <= kScratchBytes);

}  // namespace

const QuantizedLoops quantized_loops = {kScratchBytes, share};

}  // namespace limbeck::kernels::LIMBECK_ISA
