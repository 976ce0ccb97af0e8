#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels/cpu/product_shares.h"
#include "kernels/cpu/scratch_buffer.h"
#include "kernels/operator/checks.h"
#include "kernels/quantized/quantized_cpu.h"
#include "kernels/quantized/quantized_linear_loops.h"
#include "kernels/quantized/quantized_operands.h"

namespace limbeck::kernels {
namespace {

void quantized_product(const QuantizedProduct& g) {
  for_product_shares(g.m, g.n, g.k, 1e6, [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    const auto& loops = quantized_loops_for(g.storage == Storage::kBFloat16 ? product_isa() : cpu_isa());
    loops.share(g, m0, m1, n0, n1, ScratchBuffer<QuantizedProduct>::at_least(static_cast<size_t>(loops.scratch_bytes)));
  });
}

at::Tensor product_with(const at::Tensor& a, const QuantizedMatrix& matrix, bool transposed, const OptionalBias& bias) {
  auto sizes = a.sizes().vec();
  sizes.back() = transposed ? matrix.rows : matrix.columns;
  at::Tensor c = at::empty(sizes, a.options(), at::MemoryFormat::Contiguous);
  quantized_product_into(c, a, matrix, transposed, bias);
  return c;
}

at::Tensor quantized_linear_cpu(const at::Tensor& x, at::TensorList parts, c10::string_view format, int64_t rows,
                                int64_t columns, const OptionalBias& bias) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear", parts, format, rows, columns);
  check_quantized_linear(x, weight, bias);
  if (weight.format.dynamic) return dynamic_product(x, weight, bias);
  return product_with(x, weight, /*transposed=*/true, bias);
}

at::Tensor quantized_backward_cpu(const at::Tensor& dy, at::TensorList parts, c10::string_view format, int64_t rows,
                                  int64_t columns) {
  const QuantizedMatrix weight = checked_matrix("quantized_linear_backward", parts, format, rows, columns);
  check_quantized_backward(dy, weight);
  return product_with(dy, weight, /*transposed=*/false, std::nullopt);
}

}  // namespace

void quantized_product_into(const at::Tensor& c, const at::Tensor& a, const QuantizedMatrix& matrix, bool transposed,
                            const OptionalBias& bias) {
  if (c.numel() == 0) return;
  const at::Tensor dense = a.contiguous(), b = bias ? bias->contiguous() : at::Tensor();
  if (dense.size(-1) == 0) {
    b.defined() ? c.copy_(b.expand_as(c)) : c.zero_();
    return;
  }
  const QuantizedView view = view_of(matrix);
  quantized_product({.storage = storage_of(a),
                     .a = dense.const_data_ptr(),
                     .b = view,
                     .dequantize = &dequantize_rectangle,
                     .nf4_levels = kNf4Levels.data(),
                     .dynamic_levels = kDynamicLevels.data(),
                     .transposed = transposed,
                     .c = c.mutable_data_ptr(),
                     .bias = b.defined() ? b.const_data_ptr() : nullptr,
                     .m = c.numel() / c.size(-1),
                     .n = c.size(-1),
                     .k = dense.size(-1)});
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("quantized_linear", &quantized_linear_cpu);
  m.impl("quantized_linear_backward", &quantized_backward_cpu);
}

}  // namespace limbeck::kernels
