#include "kernels/linear/half_gemm_loops.h"

#include "kernels/cpu/widened_product.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

using Product = WidenedProduct<512>;

void share(const HalfGemm& g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  const auto fill_a = [&g](float* a, int64_t stride, int64_t m, int64_t rows, int64_t k, int64_t depth) {
    if (g.a_transposed) {
      to_panels_transposed(a, stride, g.a + k * g.lda + m, g.lda, rows, depth);
    } else {
      to_panels(a, stride, g.a + m * g.lda + k, g.lda, rows, depth);
    }
  };
  const auto fill_b = [&g](float* b, int64_t stride, int64_t k, int64_t depth, int64_t n, int64_t cols) {
    if (g.b_transposed) {
      to_panels_transposed(b, stride, g.b + n * g.ldb + k, g.ldb, depth, cols);
    } else {
      to_panels(b, stride, g.b + k * g.ldb + n, g.ldb, depth, cols);
    }
  };
  Product::share(m0, m1, n0, n1, g.k, RoundedProduct<Float16Bits>{g.c, g.ldc, g.bias}, static_cast<float*>(scratch),
                 fill_a, fill_b);
}

}  // namespace

const HalfGemmLoops half_gemm_loops = {Product::scratch_floats() * static_cast<int64_t>(sizeof(float)), share};

}  // namespace limbeck::kernels::LIMBECK_ISA
