#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels/cpu/product_shares.h"
#include "kernels/cpu/scratch_buffer.h"
#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/quantized/int4_dynamic_loops.h"
#include "kernels/quantized/int8_dynamic_loops.h"
#include "kernels/quantized/quantized_cpu.h"

namespace limbeck::kernels {
namespace {

// DynamicRows of x, and of the result.
struct DynamicRows {
  at::Tensor x, bias, y;
  int64_t count, columns;
  Storage storage;

  DynamicRows(const at::Tensor& given, const QuantizedMatrix& weight, const OptionalBias& added)
      : x(given.contiguous()), columns(weight.columns), storage(storage_of(given)) {
    auto sizes = given.sizes().vec();
    sizes.back() = weight.rows;
    y = at::empty(sizes, given.options(), at::MemoryFormat::Contiguous);
    count = weight.rows == 0 ? 0 : y.numel() / weight.rows;
    if (added) bias = added->contiguous();
  }

  const void* bias_data() const { return bias.defined() ? bias.const_data_ptr() : nullptr; }

  // Into codes [columns] at each row's place, and scales [count].
  template <class Place>
  void quantize(const Place& place, float* scales) const {
    const auto* values = static_cast<const char*>(x.const_data_ptr());
    const auto bytes = columns * static_cast<int64_t>(x.element_size());
    const auto& loops = int8_dynamic_loops_here();
    at::parallel_for(0, count, items_per_task(columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        place(row, [&](int8_t* codes) {
          loops.quantize_rows(storage, values + row * bytes, 1, columns, codes, scales + row);
        });
    });
  }
};

void multiply_int8(const DynamicRows& rows, const QuantizedMatrix& weight) {
  // Rows at whole pages would push one another out of the first cache.
  constexpr int64_t page = 4096, line = 64;
  const int64_t stride = rows.columns % page == 0 ? rows.columns + line : rows.columns;
  const at::Tensor codes = at::empty({rows.count, stride}, rows.x.options().dtype(at::kChar));
  const at::Tensor scales = at::empty({rows.count}, rows.x.options().dtype(at::kFloat));
  auto* code = codes.mutable_data_ptr<int8_t>();
  rows.quantize([&](int64_t row, const auto& fill) { fill(code + row * stride); }, scales.mutable_data_ptr<float>());
  const QuantizedView view = view_of(weight);
  const Int8Product product{.codes = code,
                            .stride = stride,
                            .scales = scales.const_data_ptr<float>(),
                            .weight = view,
                            .storage = rows.storage,
                            .y = rows.y.mutable_data_ptr(),
                            .bias = rows.bias_data(),
                            .m = rows.count,
                            .n = weight.rows,
                            .k = rows.columns};
  for_product_shares(product.m, product.n, product.k, 1e6, [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    int8_dynamic_loops_here().share(product, m0, m1, n0, n1);
  });
}

void multiply_int4(const DynamicRows& rows, const QuantizedMatrix& weight) {
  const QuantizedView view = view_of(weight);
  const int64_t stride = rounded_up_quotient(rows.columns, kArrangedCodes) * kArrangedCodes, groups = groups_of(view);
  const at::Tensor codes = at::empty({rows.count, stride}, rows.x.options().dtype(at::kChar));
  const at::Tensor scales = at::empty({rows.count}, rows.x.options().dtype(at::kFloat));
  const at::Tensor middles = at::empty({rows.count, groups}, rows.x.options().dtype(at::kInt));
  auto* code = codes.mutable_data_ptr<int8_t>();
  auto* middle = middles.mutable_data_ptr<int32_t>();
  const auto& loops = int4_dynamic_loops_here();
  rows.quantize(
      [&](int64_t row, const auto& fill) {
        fill(code + row * stride);
        loops.arrange(view, code + row * stride, stride, middle + row * groups);
      },
      scales.mutable_data_ptr<float>());
  const Int4Product product{.codes = code,
                            .stride = stride,
                            .scales = scales.const_data_ptr<float>(),
                            .middles = middle,
                            .weight = view,
                            .storage = rows.storage,
                            .y = rows.y.mutable_data_ptr(),
                            .bias = rows.bias_data(),
                            .m = rows.count,
                            .n = weight.rows,
                            .k = rows.columns};
  for_product_shares(product.m, product.n, product.k, 1e6, [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    loops.share(product, m0, m1, n0, n1,
                ScratchBuffer<Int4Product>::at_least(static_cast<size_t>(loops.scratch_bytes)));
  });
}

}  // namespace

at::Tensor dynamic_product(const at::Tensor& x, const QuantizedMatrix& weight, const OptionalBias& bias) {
  const DynamicRows rows(x, weight, bias);
  if (rows.y.numel() == 0) return rows.y;
  weight.format.kind == CodeKind::kInt8 ? multiply_int8(rows, weight) : multiply_int4(rows, weight);
  return rows.y;
}

}  // namespace limbeck::kernels
