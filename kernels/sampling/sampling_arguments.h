// The work of sample_ids on plain pointers, without torch's headers.
#pragma once
#include <cstdint>

namespace limbeck::kernels {

struct SamplingArguments {
  const void* logits;  // [rows, vocabulary] at row_stride
  int64_t row_stride;
  int64_t vocabulary;
  int64_t* ids;        // [rows]
  double temperature;  // 0: the greatest
  int64_t top_k;       // from 1 to the vocabulary
  double top_p;
  uint64_t seed, step;
  double largest;  // finite number of the dtype
  bool allow_nonfinite;
};

}  // namespace limbeck::kernels
