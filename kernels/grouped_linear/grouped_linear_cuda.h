// Launchers of the CUDA kernels of the grouped products. All pointers are device pointers; nothing synchronises. Where
// the groups end is read by the kernels: a launch is as large as any division of the rows needs. Sums are in one order.
#pragma once
#include <cuda_runtime_api.h>

#include "kernels/operator/storage.h"

namespace limbeck::kernels {

// A matrix whose lines have adjacent elements.
struct Lines {
  const void* data;
  int stride;  // elements from one line to the next
};

struct Groups {
  const int32_t* ends;  // any numbers are safe: they are held between 0 and `rows`, which is where the last group ends
  int count;
  int rows;
};

// out [rows, width] = rows [rows, depth] W_g^T, out without gaps. W_g lies at `weight` + g * `group_stride`: lines
// [width, depth], or [depth, width] where it is transposed.
struct GroupedLinearWork {
  Lines rows, weight;
  int64_t group_stride;
  bool transposed;
  void* out;
  Groups groups;
  int width, depth;
};

// out [groups, height, width] = left^T right over the rows of each group, out without gaps.
struct GroupedOuterWork {
  Lines left, right;
  void* out;
  Groups groups;
  int height, width;
};

void launch_grouped_linear(Storage storage, const GroupedLinearWork& work, cudaStream_t stream);
void launch_grouped_outer(Storage storage, const GroupedOuterWork& work, cudaStream_t stream);

}  // namespace limbeck::kernels
