// How CUDA divides the resolvent, and the memory that it takes beside results and copies without gaps: for its body and
// for the Meta kernels, which plan for it. Numbers of float64: O(n), and of many rows no more than of some at once.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/operator/rounded_up.h"
#include "kernels/resolvent/resolvent_formula.h"

namespace limbeck::kernels {

// Positions of a row that one thread goes along. Of one length always: the bits depend on no other row.
inline constexpr int64_t kDeviceSegment = 32;
inline constexpr int64_t kGreenProductNumbers = 9, kSumProductNumbers = 6;  // of resolvent_products.h
inline constexpr int64_t kPositionsAtOnce = 1 << 22;

inline int64_t device_segments(int64_t n) { return rounded_up_quotient(n, kDeviceSegment); }
inline int64_t rows_at_once(int64_t rows, int64_t n) {
  return std::min(rows, std::max<int64_t>(1, kPositionsAtOnce / n));
}

struct ResolventScratch {
  int64_t products = 0, entries = 0;  // a product and an entry a segment; none where a row is one segment
  int64_t states = 0;                 // one array of complex numbers, a position each
  int64_t arrays = 0;
  int64_t runs = 0;

  ResolventScratch(int64_t rows, int64_t n, int64_t product_numbers, int64_t of_arrays, bool of_runs)
      : arrays(of_arrays) {
    const int64_t count = rows_at_once(rows, n), segments = device_segments(n) == 1 ? 0 : count * device_segments(n);
    products = segments * product_numbers;
    entries = 2 * segments;
    states = 2 * count * n;
    runs = of_runs ? 2 * count * rounded_up_quotient(n, kGradientRun) : 0;
  }
  int64_t numbers() const { return products + entries + arrays * states + runs; }
};

// keep: the Green functions are results. The causal one keeps none otherwise.
inline ResolventScratch resolvent_scratch(int64_t rows, int64_t n, bool causal, bool keep) {
  return {rows, n, kGreenProductNumbers, causal || keep ? 0 : 2, false};
}
// Of tridiagonal_solve(): the pivots, and beside them what the scan of one recurrence after the other takes, of a row
// for the pivots, of each of its columns for the others.
inline int64_t tridiagonal_scratch_numbers(int64_t rows, int64_t n, int64_t columns) {
  const int64_t segments = device_segments(n) == 1 ? 0 : rows * device_segments(n);
  return 2 * rows * n + segments * std::max(kGreenProductNumbers + 2, columns * (kSumProductNumbers + 2));
}
// The source and the sums of one side or both.
inline ResolventScratch resolvent_backward_scratch(int64_t rows, int64_t n, bool causal) {
  return {rows, n, kSumProductNumbers, causal ? 2 : 3, true};
}

}  // namespace limbeck::kernels
