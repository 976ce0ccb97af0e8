// The next token of each row of logits, greedy or drawn after temperature, top-k and top-p, on the logits' device.
// Drawn by counters (seed, row, step): a row's token does not depend on the rest of the batch.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace limbeck::kernels {

struct SamplingOptions {
  double temperature = 0.0;  // 0: the greatest
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;
  uint64_t seed = 0;
  int64_t step = 0;
  bool allow_nonfinite = false;  // NaN counts as the least finite number, an infinity as the finite one next to it
};

// logits_bv [B, V], rows may be strided -> int64 [B]; -1 where a row holds NaN or an infinity that is not allowed.
// Candidates are in descending order, of equal ones the lower id first. top_k keeps the first k; then top_p keeps the
// fewest whose mass reaches that share of theirs; then the one is taken in whose share of the mass the number of (seed,
// row, step) falls. Differences, exponentials and sums are float64.
at::Tensor sample_ids(const at::Tensor& logits_bv, const SamplingOptions& options);

}  // namespace limbeck::kernels
