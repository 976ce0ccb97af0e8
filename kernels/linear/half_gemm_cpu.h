// Product of float16 matrices on processors without float16 arithmetic: float32 inside, one rounding to float16.
// The same bits for every number of threads, and for a row whatever other rows are in the call.
// Scratch: 2.1 MB a thread, kept, whatever the shape.
#pragma once
#include "kernels/linear/half_gemm_loops.h"

namespace limbeck::kernels {

void half_gemm(const HalfGemm& g);

// Who multiplies float16 on the CPU: ATen where oneDNN has float16 instructions, half_gemm elsewhere. Decided from the
// processor alone. LIMBECK_FP16_GEMM=native|widen overrides it, and set_half_gemm_path both (tests, benchmarks).
enum class HalfGemmPath { kNative, kWiden };
HalfGemmPath half_gemm_path();
void set_half_gemm_path(HalfGemmPath path);

}  // namespace limbeck::kernels
