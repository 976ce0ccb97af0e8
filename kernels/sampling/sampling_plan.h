// What sampling on CUDA has room for and takes beside its logits: known without a GPU, so that a plan says and refuses
// what the run would.
#pragma once
#include <cstdint>

namespace limbeck::kernels {

inline constexpr int64_t kMostSampledRows = 65535;      // of a grid
inline constexpr int64_t kMostSampled = (1 << 22) - 1;  // of a vocabulary: what the sums of its masses have room for

inline constexpr int64_t kSamplingBins = 2048, kSamplingTallyBytes = 24, kSamplingStateBytes = 80;
// The state of a row and two tables of tallies.
constexpr int64_t sampling_workspace_bytes(int64_t rows) {
  return rows * (kSamplingStateBytes + 2 * kSamplingBins * kSamplingTallyBytes);
}

}  // namespace limbeck::kernels
