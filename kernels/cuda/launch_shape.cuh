// How work is divided into blocks and threads, on the host and in the kernel. For .cu files only.
#pragma once
#include "kernels/operator/rounded_up.h"

namespace limbeck::kernels {

// The blocks that so much work takes, of which a block takes `of_block`.
inline unsigned blocks_for(int64_t work, int64_t of_block) {
  return static_cast<unsigned>(rounded_up_quotient(work, of_block));
}

// Of a block that takes a row: eight elements or fewer a thread, until there are `most` of them.
inline int threads_of_row(int64_t width, int most) {
  int threads = 64;
  while (threads < most && threads * 8 < width) threads *= 2;
  return threads;
}

// Of the threads of all blocks.
template <class Index = int64_t>
__device__ __forceinline__ Index thread_number() {
  return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace limbeck::kernels
