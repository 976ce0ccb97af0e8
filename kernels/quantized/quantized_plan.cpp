#include "kernels/quantized/quantized_plan.h"

#include <algorithm>
#include <atomic>

#include "kernels/quantized/int4_dynamic_loops.h"

namespace limbeck::kernels {
namespace {

constexpr int64_t kUnpackedBytes = int64_t{64} << 20, kAlignedRows = 64;
std::atomic<int64_t> bytes_of_tests = 0;

}  // namespace

int64_t unpacked_rows_at_once(int64_t rows, int64_t columns, int64_t value_bytes) {
  const int64_t wish = bytes_of_tests.load(std::memory_order_relaxed), bytes = wish > 0 ? wish : kUnpackedBytes;
  const int64_t most = bytes / std::max<int64_t>(1, columns * value_bytes);
  const int64_t run = most > kAlignedRows ? most - most % kAlignedRows : most;
  return std::max<int64_t>(1, std::min(run, rows));
}

bool unpacked_at_once(int64_t rows, int64_t columns, int64_t value_bytes) {
  return unpacked_rows_at_once(rows, columns, value_bytes) >= rows;
}

int64_t row_codes_bytes(const QuantizedFormat& format, int64_t count, int64_t columns) {
  constexpr int64_t kScale = sizeof(float), kSum = sizeof(int32_t);
  if (format.kind == CodeKind::kInt8) return count * (columns + kScale);
  const int64_t blocks = rounded_up_quotient(columns, kArrangedCodes);
  return count * (blocks * kArrangedCodes + kScale + rounded_up_quotient(columns, format.group()) * kSum);
}

bool sums_by_cublas(int64_t count, int64_t rows, int64_t columns) {
  return count > 16 && rows % 8 == 0 && columns % 8 == 0 && rows > 0 && columns > 0;
}

int64_t cuda_product_scratch(const QuantizedFormat& format, int64_t count, int64_t rows, int64_t columns,
                             int64_t value_bytes) {
  if (format.dynamic) {
    const int64_t sums = count * rows * static_cast<int64_t>(sizeof(int32_t));
    return row_codes_bytes(format, count, columns) + (sums_by_cublas(count, rows, columns) ? sums : 0);
  }
  return count <= kFewRows ? 0 : unpacked_rows_at_once(rows, columns, value_bytes) * columns * value_bytes;
}

int64_t cuda_gradient_scratch(int64_t count, int64_t rows, int64_t columns, int64_t value_bytes) {
  if (rows == 0) return 0;
  const int64_t unpacked = unpacked_rows_at_once(rows, columns, value_bytes) * columns * value_bytes;
  if (value_bytes == 4 || unpacked_at_once(rows, columns, value_bytes)) return unpacked;
  // Half types: the result is made of the float32 sums when the unpacked rows are gone.
  const int64_t result = count * columns * value_bytes, sums = count * columns * 4;
  return std::max(sums + unpacked - result, sums);
}

void set_unpacked_bytes(int64_t bytes) { bytes_of_tests.store(bytes, std::memory_order_relaxed); }

}  // namespace limbeck::kernels
