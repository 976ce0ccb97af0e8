// C = A B (+ bias), where B is a quantized matrix or its transpose. With few rows of A codes go straight to the sums;
// with more, rectangles of B are widened while they are needed.
#include "kernels/quantized/quantized_linear_loops.h"

#include "kernels/cpu/widened_product.h"
#include "kernels/quantized/few_rows_product.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

using Product = WidenedProduct<256>;                 // with the matrix
using Transposed = WidenedProduct<128, ChainedSums>;  // with its transpose
constexpr int64_t kWideValues = 256 * 256;            // of a rectangle
static_assert(kWideValues >= Product::kDepth * 256 && kWideValues >= Transposed::kDepth * 128);

// Rows [n, n + cols) of the matrix as columns of panels; `words` is scratch for those of one vector.
template <CodeKind kind>
void unpack_to_panels(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth, int64_t n,
                      int64_t cols, uint32_t* words) {
  constexpr int64_t lanes = kLanes<float>, width = kWidth<float>, most = 256;
  for (int64_t c = 0; c < panels<float>(cols) * width; c += lanes) {
    const int64_t count = std::clamp<int64_t>(cols - c, 0, lanes);
    float* values = b + c / width * stride + c % width;
    for (int64_t at = 0; at < depth; at += most) {
      unpack_side_by_side<kind>(g.b, n + c, count, k + at, std::min(most, depth - at), {g.nf4_levels, g.dynamic_levels},
                                words, values, width, [at](int64_t i) { return ChainedSums::place(at + i); });
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
  if (!g.transposed) {
    const auto fill_a = [&](float* a, int64_t stride, int64_t m, int64_t rows, int64_t k, int64_t depth) {
      to_panels(a, stride, x + m * g.k + k, g.k, rows, depth);
    };
    const auto fill_b = [&](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
      // Behind B's panels: near where they are few.
      float* wide = b + panels<float>(cols) * Product::kDepth * kWidth<float>;
      g.dequantize(g.b, k, k + depth, n, n + cols, wide);
      to_panels(b, stride, wide, cols, depth, cols);
    };
    return Product::share(m0, m1, n0, n1, g.k, to, scratch, fill_a, fill_b);
  }
  if (m1 - m0 <= kMostFewRows && lies_side_by_side(g.b)) {
    const FewRows<T> few{g.b, {g.nf4_levels, g.dynamic_levels}, x + m0 * g.k, to.c + m0 * g.n, g.n, to.bias, n0, n1};
    return FewRowsProduct::share(few, m1 - m0, scratch);
  }
  const auto fill_a = [&](float* a, int64_t stride, int64_t m, int64_t rows, int64_t k, int64_t depth) {
    ChainedSums::fill_a(a, stride, x + m * g.k + k, g.k, rows, depth);
  };
  const auto fill_b = [&](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
    unpack_transposed(g, b, stride, k, depth, n, cols,
                      b + panels<float>(cols) * Transposed::kDepth * kWidth<float>);
  };
  Transposed::share(m0, m1, n0, n1, g.k, to, scratch, fill_a, fill_b);
}

void share(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  with_storage(g.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) share_of<T>(g, m0, m1, n0, n1, static_cast<float*>(scratch));
  });
}

constexpr int64_t kScratchBytes =
    (std::max(Product::scratch_floats(), Transposed::scratch_floats()) + kWideValues) *
    static_cast<int64_t>(sizeof(float));
static_assert(sizeof(FewRowsProduct::Scratch) <= kScratchBytes);

}  // namespace

const QuantizedLoops quantized_loops = {kScratchBytes, share};

}  // namespace limbeck::kernels::LIMBECK_ISA
