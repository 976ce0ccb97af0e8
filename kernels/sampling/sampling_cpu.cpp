#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/sampling/sampling_formula.h"
#include "kernels/sampling/sampling_operators.h"

namespace limbeck::kernels {
namespace {

struct Candidate {
  double depth;
  int64_t id;
  bool operator<(const Candidate& other) const {
    return depth < other.depth || (depth == other.depth && id < other.id);
  }
};

// In the order of sampling, the first top_k of them.
std::vector<Candidate> candidates_of(const std::vector<double>& logits, double greatest, const SamplingArguments& a) {
  std::vector<Candidate> all(logits.size());
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = {depth_of(greatest, logits[i], a.temperature), static_cast<int64_t>(i)};
  }
  if (a.top_k < a.vocabulary) {
    std::nth_element(all.begin(), all.begin() + a.top_k, all.end());
    all.resize(static_cast<size_t>(a.top_k));
  }
  std::sort(all.begin(), all.end());
  return all;
}

int64_t drawn(const std::vector<Candidate>& candidates, const SamplingArguments& a, int64_t row) {
  std::vector<double> cumulative;
  cumulative.reserve(candidates.size());
  double total = 0.0;
  for (const Candidate& one : candidates) cumulative.push_back(total += std::exp(-one.depth));
  const auto last = std::lower_bound(cumulative.begin(), cumulative.end(), a.top_p * total);
  const auto kept = std::min<size_t>(static_cast<size_t>(last - cumulative.begin()) + 1, cumulative.size());
  const double uniform =
      (static_cast<double>(drawn_bits(a.seed, static_cast<uint64_t>(row), a.step)) + 0.5) / 4294967296.0;
  const double target = uniform * cumulative[kept - 1];
  const auto chosen = std::upper_bound(cumulative.begin(), cumulative.begin() + static_cast<int64_t>(kept), target);
  return candidates[std::min<size_t>(static_cast<size_t>(chosen - cumulative.begin()), kept - 1)].id;
}

template <class T>
int64_t id_of_row(const SamplingArguments& a, int64_t row) {
  const T* from = static_cast<const T*>(a.logits) + row * a.row_stride;
  std::vector<double> logits(static_cast<size_t>(a.vocabulary));
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<double>(from[i]);
    if (a.allow_nonfinite) {
      logits[i] = tamed(logits[i], a.largest);
    } else if (!is_finite(logits[i])) {
      return -1;
    }
  }
  return drawn(candidates_of(logits, *std::max_element(logits.begin(), logits.end()), a), a, row);
}

at::Tensor sample(const at::Tensor& logits, double temperature, int64_t top_k, double top_p, int64_t seed, int64_t step,
                  bool allow_nonfinite) {
  const at::Tensor ids = sampled_ids(logits, temperature, top_k, top_p, seed, step, allow_nonfinite);
  if (temperature == 0) {
    greatest_ids(logits, allow_nonfinite, ids);
    return ids;
  }
  const SamplingWork work(logits, temperature, top_k, top_p, seed, step, allow_nonfinite, ids);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, logits.scalar_type(), "sample_ids", [&] {
    at::parallel_for(0, ids.numel(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) work.arguments.ids[row] = id_of_row<scalar_t>(work.arguments, row);
    });
  });
  return ids;
}

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("sample_ids", sample); }

}  // namespace
}  // namespace limbeck::kernels
