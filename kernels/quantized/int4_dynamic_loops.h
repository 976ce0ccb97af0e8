// The loops of products with a matrix in int4 of which rows of x are codes too (quantized_linear.h), on plain pointers.
#pragma once
#include <cstdint>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/operator/storage.h"

namespace limbeck::kernels {

struct QuantizedView;  // quantized_formula.h

// Codes of x of which those at even places come before those at odd ones, as the halves of bytes of the matrix lie.
inline constexpr int64_t kArrangedCodes = 128;

// What groups of a row of the matrix add lies in chains: group g in chain g modulo so many, one by one; the chains are
// added to 0 one by one.
inline constexpr int64_t kInt4Chains = 16;

// y [m, n] of the codes of x and of the matrix [n, k] in int4.
struct Int4Product {
  const int8_t* codes;     // [m, stride], arranged: 0 behind the k-th
  int64_t stride;          // a multiple of kArrangedCodes
  const float* scales;     // [m]
  const int32_t* middles;  // [m, groups]: kMiddleCode times the codes that meet a group of the matrix
  const QuantizedView& weight;
  Storage storage;  // of y and bias
  void* y;
  const void* bias;  // or nullptr
  int64_t m, n, k;
};

struct Int4DynamicLoops {
  // Codes of a row of x [stride], as many as the matrix has columns: arranged, and the middles of its groups.
  void (*arrange)(const QuantizedView& weight, int8_t* codes, int64_t stride, int32_t* middles);
  int64_t scratch_bytes;
  // Rows [m0, m1) and columns [n0, n1) of y: one thread's share.
  void (*share)(const Int4Product&, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch);
};

LIMBECK_CODE_LOOPS(Int4DynamicLoops, int4_dynamic_loops)

}  // namespace limbeck::kernels
