// C [rows, 32] (+)= A [rows, K] B [K, 32] in float32 on operands cut into blocks of 32, so that every instruction set
// reads whole cache lines. Where the processor multiplies bfloat16 itself (AMX, AVX512-BF16), operands are pairs of
// bfloat16; elsewhere they are widened to float32 beforehand. Every element is one chain over K in ascending order: its
// bits do not depend on the other rows and columns.
#pragma once
#include <cstdint>

namespace limbeck::kernels {

inline constexpr int64_t kProductBlock = 32;  // of K, and the columns of one product
inline constexpr int64_t kProductArea = kProductBlock * kProductBlock;

// K is cut into segments of `blocks` blocks, each of 32: A is [segments][blocks][rows][32], B is
// [segments][blocks][32 / P][32][P], where P is 2 for bfloat16 (two neighbours of K side by side) and 1 for float32.
struct TileProduct {
  float* c;  // [rows][32], rows `c_stride` apart
  const void* a;
  int64_t a_block_stride, a_segment_stride;  // elements
  const void* b;
  int64_t b_segment_stride;  // elements; the blocks of a segment adjoin
  int64_t rows;              // for bfloat16 a multiple of 32
  int64_t blocks, segments;
  bool accumulate;
  // float32 only: each block of K is summed apart and then added, so that the error of a logit does not grow with K.
  bool sum_blocks_apart = false;
  int64_t c_stride = kProductBlock;  // another one: float32 only
};

// For bfloat16 operands, where product_isa() is kAvx512Bf16 or kAmx.
void bf16_tile_product(const TileProduct& p);

}  // namespace limbeck::kernels
