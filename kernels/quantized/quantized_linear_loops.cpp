// C = A B (+ bias), where B is a quantized matrix or its transpose: rectangles of it are widened while they are needed.
#include "kernels/quantized/quantized_linear_loops.h"

#include "kernels/cpu/widened_product.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kTileCols = 256;
using Product = WidenedProduct<kTileCols>;

template <class T>
void share_of(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch) {
  const auto fill_a = [&g](float* a, int64_t stride, int64_t m, int64_t rows, int64_t k, int64_t depth) {
    to_panels(a, stride, static_cast<const T*>(g.a) + m * g.k + k, g.k, rows, depth);
  };
  const auto fill_b = [&g](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
    float* wide =
        b + panels<float>(cols) * Product::kDepth * kWidth<float>;  // behind B's panels: near where they are few
    if (g.transposed) {
      g.dequantize(g.b, n, n + cols, k, k + depth, wide);
      to_panels_transposed(b, stride, wide, depth, depth, cols);
    } else {
      g.dequantize(g.b, k, k + depth, n, n + cols, wide);
      to_panels(b, stride, wide, cols, depth, cols);
    }
  };
  Product::share(m0, m1, n0, n1, g.k, RoundedProduct<T>{static_cast<T*>(g.c), g.n, static_cast<const T*>(g.bias)},
                 scratch, fill_a, fill_b);
}

void share(const QuantizedProduct& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  with_storage(g.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) share_of<T>(g, m0, m1, n0, n1, static_cast<float*>(scratch));
  });
}

constexpr int64_t kScratchFloats = Product::scratch_floats() + kTileCols * Product::kDepth;

}  // namespace

const QuantizedLoops quantized_loops = {kScratchFloats * static_cast<int64_t>(sizeof(float)), share};

}  // namespace limbeck::kernels::LIMBECK_ISA
