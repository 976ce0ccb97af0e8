// C = A B (+ bias), where B is a quantized matrix or its transpose. With few rows of A codes go straight to the sums;
// with more, rectangles of B are widened while they are needed.
#include "kernels/quantized/quantized_linear_loops.h"

#include "kernels/quantized/few_rows_product.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kTileCols = 256;
using Product = WidenedProduct<kTileCols>;
using FewRows = FewRowsProduct<Product::kDepth>;

// Rows [n, n + cols) of the matrix as columns of panels; `words` is scratch for those of one vector.
template <CodeKind kind>
void unpack_to_panels(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth, int64_t n,
                      int64_t cols, uint32_t* words) {
  constexpr int64_t lanes = kLanes<float>, width = kWidth<float>;
  for (int64_t c = 0; c < panels<float>(cols) * width; c += lanes) {
    const int64_t count = std::clamp<int64_t>(cols - c, 0, lanes);
    unpack_side_by_side<kind>(g.b, n + c, count, k, depth, {g.nf4_levels, g.dynamic_levels}, words,
                              b + c / width * stride + c % width, width);
  }
}

void unpack_transposed(const QuantizedProduct& g, float* b, int64_t stride, int64_t k, int64_t depth, int64_t n,
                       int64_t cols, float* wide) {
  if (!lies_side_by_side(g.b)) {
    g.dequantize(g.b, n, n + cols, k, k + depth, wide);
    return to_panels_transposed(b, stride, wide, depth, depth, cols);
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
  if (g.transposed && m1 - m0 <= kMostFewRows && lies_side_by_side(g.b)) {
    return FewRows::share(g.b, {g.nf4_levels, g.dynamic_levels}, x + m0 * g.k, m1 - m0, n0, n1,
                          RoundedProduct<T>{to.c + m0 * g.n, g.n, to.bias}, scratch);
  }
  const auto fill_a = [&](float* a, int64_t stride, int64_t m, int64_t rows, int64_t k, int64_t depth) {
    to_panels(a, stride, x + m * g.k + k, g.k, rows, depth);
  };
  const auto fill_b = [&g](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
    float* wide =
        b + panels<float>(cols) * Product::kDepth * kWidth<float>;  // behind B's panels: near where they are few
    if (g.transposed) {
      unpack_transposed(g, b, stride, k, depth, n, cols, wide);
    } else {
      g.dequantize(g.b, k, k + depth, n, n + cols, wide);
      to_panels(b, stride, wide, cols, depth, cols);
    }
  };
  Product::share(m0, m1, n0, n1, g.k, to, scratch, fill_a, fill_b);
}

void share(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  with_storage(g.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) share_of<T>(g, m0, m1, n0, n1, static_cast<float*>(scratch));
  });
}

constexpr int64_t kScratchBytes =
    (Product::scratch_floats() + kTileCols * Product::kDepth) * static_cast<int64_t>(sizeof(float));
static_assert(sizeof(FewRows::Scratch) <= kScratchBytes);

}  // namespace

const QuantizedLoops quantized_loops = {kScratchBytes, share};

}  // namespace limbeck::kernels::LIMBECK_ISA
