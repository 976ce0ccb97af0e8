// C += A B in float64 on plain pointers, for what error-compensated rounding is made of. An element of C takes its
// products in the order of k, each fused with the sum where the processor can: it has the same bits however C and k are
// cut.
#pragma once
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"

namespace limbeck::kernels {

// Rows lie `stride` elements apart.
struct DoubleProduct {
  const double* a;  // [m, k]
  int64_t a_stride;
  const double* b;  // [k, n]
  int64_t b_stride;
  double* c;  // [m, n]
  int64_t c_stride;
  int64_t m, n, k;
};

struct DoubleProductLoops {
  // Meant for a depth of some hundreds: a strip of B then stays in the first-level cache.
  void (*add)(const DoubleProduct&);
};

LIMBECK_LOOPS(DoubleProductLoops, double_product_loops)

}  // namespace limbeck::kernels
