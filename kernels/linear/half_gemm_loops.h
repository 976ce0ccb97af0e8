// The loops of half_gemm on plain pointers, without torch's headers.
#pragma once
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

// C [m, n] = A [m, k] B [k, n] + bias [n] or nullptr; rows lie ld* elements apart.
struct HalfGemm {
  const Float16Bits* a;
  int64_t lda;
  bool a_transposed;  // a holds A^T [k, m]
  const Float16Bits* b;
  int64_t ldb;
  bool b_transposed;  // b holds B^T [n, k]
  Float16Bits* c;
  int64_t ldc;
  const Float16Bits* bias;
  int64_t m, n, k;
};

struct HalfGemmLoops {
  int64_t scratch_bytes;  // of one thread, whatever the shape
  // Rows [m0, m1) and columns [n0, n1) of C: one thread's share.
  void (*share)(const HalfGemm&, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch);
};

LIMBECK_LOOPS(HalfGemmLoops, half_gemm_loops)

}  // namespace limbeck::kernels
