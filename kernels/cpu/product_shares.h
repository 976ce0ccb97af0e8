// How C [m, n], a product over depth k, is divided among the threads: its longer side is cut, the other stays whole, so
// that fewer operands are widened twice.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {

// Calls share(m0, m1, n0, n1) for each part; one call for the whole where there are fewer operations than
// `least_operations`, which would not repay waking a thread.
template <class Share>
void for_product_shares(int64_t m, int64_t n, int64_t k, double least_operations, const Share& share) {
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const bool by_rows = m >= n;
  const int64_t length = by_rows ? m : n;
  constexpr int64_t unit = 32;
  const int64_t units = (length + unit - 1) / unit;
  const bool small = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) < least_operations;
  const int64_t grain = small ? units : (units + threads - 1) / threads;
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * unit, to = std::min(end * unit, length);
    share(by_rows ? from : 0, by_rows ? to : m, by_rows ? 0 : from, by_rows ? n : to);
  });
}

}  // namespace limbeck::kernels
