#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels/cpu/product_shares.h"
#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/quantized/int8_dynamic_loops.h"
#include "kernels/quantized/quantized_cpu.h"

namespace limbeck::kernels {

at::Tensor int8_dynamic_product(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias) {
  const int64_t rows = weight.rows, columns = weight.columns;
  auto sizes = x.sizes().vec();
  sizes.back() = rows;
  at::Tensor y = at::empty(sizes, x.options(), at::MemoryFormat::Contiguous);
  if (y.numel() == 0) return y;
  const at::Tensor dense = x.contiguous(), b = bias ? bias->contiguous() : at::Tensor();
  const int64_t count = y.numel() / rows;
  const at::Tensor codes = at::empty({count, columns}, x.options().dtype(at::kChar));
  const at::Tensor scales = at::empty({count}, x.options().dtype(at::kFloat));
  auto* code = codes.mutable_data_ptr<int8_t>();
  auto* scale = scales.mutable_data_ptr<float>();
  const auto* values = static_cast<const char*>(dense.const_data_ptr());
  const Storage storage = storage_of(x);
  const auto& loops = int8_dynamic_loops_here();
  at::parallel_for(0, count, items_per_task(columns), [&](int64_t begin, int64_t end) {
    loops.quantize_rows(storage, values + begin * columns * static_cast<int64_t>(x.element_size()), end - begin,
                        columns, code + begin * columns, scale + begin);
  });
  const QuantizedView view = view_of(weight);
  const Int8Product product{.codes = code,
                            .scales = scale,
                            .weight = view,
                            .storage = storage,
                            .y = y.mutable_data_ptr(),
                            .bias = b.defined() ? b.const_data_ptr() : nullptr,
                            .m = count,
                            .n = rows,
                            .k = columns};
  for_product_shares(product.m, product.n, product.k, 1e6,
                     [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1) { loops.share(product, m0, m1, n0, n1); });
  return y;
}

}  // namespace limbeck::kernels
