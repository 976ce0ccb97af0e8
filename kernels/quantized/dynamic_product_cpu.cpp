#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels/cpu/product_shares.h"
#include "kernels/cpu/scratch_buffer.h"
#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/quantized/int4_dynamic_loops.h"
#include "kernels/quantized/int8_dynamic_loops.h"
#include "kernels/quantized/quantized_cpu.h"
#include "kernels/quantized/quantized_plan.h"

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
          loops.quantize_rows(storage, values + row * bytes, 1, columns, kStepsOfDynamic, codes, scales + row);
        });
    });
  }
};

// What a product keeps of its rows, in one piece: allocations are a good part of a small product's time.
class RowMemory {
 public:
  RowMemory(const DynamicRows& rows, int64_t bytes_of_row)
      : memory_(at::empty({rows.count * bytes_of_row + kMostParts * kLine}, rows.x.options().dtype(at::kByte))),
        next_(memory_.mutable_data_ptr<uint8_t>()) {}

  template <class T>
  T* take(int64_t count) {
    auto* here = reinterpret_cast<T*>(next_);
    next_ += rounded_up_quotient(count * static_cast<int64_t>(sizeof(T)), kLine) * kLine;
    return here;
  }

 private:
  static constexpr int64_t kLine = 64, kMostParts = 3;

  at::Tensor memory_;
  uint8_t* next_;
};

void multiply_int8(const DynamicRows& rows, const QuantizedMatrix& weight) {
  // Rows at whole pages would push one another out of the first cache.
  constexpr int64_t page = 4096, line = 64;
  const int64_t stride = rows.columns % page == 0 ? rows.columns + line : rows.columns;
  RowMemory memory(rows, stride + static_cast<int64_t>(sizeof(float)));
  auto* codes = memory.take<int8_t>(rows.count * stride);
  auto* scales = memory.take<float>(rows.count);
  rows.quantize([&](int64_t row, const auto& fill) { fill(codes + row * stride); }, scales);
  const QuantizedView view = view_of(weight);
  const Int8Product product{.codes = codes,
                            .stride = stride,
                            .scales = scales,
                            .weight = view,
                            .storage = rows.storage,
                            .y = rows.y.mutable_data_ptr(),
                            .bias = rows.bias_data(),
                            .m = rows.count,
                            .n = weight.rows,
                            .k = rows.columns};
  const auto& loops = int8_dynamic_loops_here();
  for_product_shares(product.m, product.n, product.k, 1e6, [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    loops.share(product, m0, m1, n0, n1,
                ScratchBuffer<Int8Product>::at_least(static_cast<size_t>(loops.scratch_bytes)));
  });
}

void multiply_int4(const DynamicRows& rows, const QuantizedMatrix& weight) {
  const QuantizedView view = view_of(weight);
  const int64_t stride = rounded_up_quotient(rows.columns, kArrangedCodes) * kArrangedCodes, groups = groups_of(view);
  RowMemory memory(rows, row_codes_bytes(weight.format, 1, rows.columns));
  auto* codes = memory.take<int8_t>(rows.count * stride);
  auto* middles = memory.take<int32_t>(rows.count * groups);
  auto* scales = memory.take<float>(rows.count);
  const auto& loops = int4_dynamic_loops_here();
  rows.quantize(
      [&](int64_t row, const auto& fill) {
        fill(codes + row * stride);
        loops.arrange(view, codes + row * stride, stride, middles + row * groups);
      },
      scales);
  const Int4Product product{.codes = codes,
                            .stride = stride,
                            .scales = scales,
                            .middles = middles,
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
