#include "kernels/quantized/quantized_plan.h"

#include <algorithm>
#include <atomic>

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

void set_unpacked_bytes(int64_t bytes) { bytes_of_tests.store(bytes, std::memory_order_relaxed); }

}  // namespace limbeck::kernels
