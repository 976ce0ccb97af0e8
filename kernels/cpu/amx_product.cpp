// AMX: 2 x 2 tiles of 16 x 16.
#include "kernels/cpu/bf16_products.h"
#include "kernels/cpu/tile_registers.h"

namespace limbeck::kernels {

void amx_product(const TileProduct& p) {
  static const TileConfiguration configuration;
  constexpr int64_t kHalf = 16, kFloatRow = kProductBlock * sizeof(float), kPairRow = 2 * kProductBlock * 2;
  LIMBECK_TILE_CONFIGURE(&configuration);
  for (int64_t row = 0; row < p.rows; row += kProductBlock) {
    float* c = p.c + row * kProductBlock;
    if (p.accumulate) {
      LIMBECK_TILE_LOAD(0, c, kFloatRow);
      LIMBECK_TILE_LOAD(1, c + kHalf, kFloatRow);
      LIMBECK_TILE_LOAD(2, c + kHalf * kProductBlock, kFloatRow);
      LIMBECK_TILE_LOAD(3, c + kHalf * kProductBlock + kHalf, kFloatRow);
    } else {
      LIMBECK_TILE_ZERO(0);
      LIMBECK_TILE_ZERO(1);
      LIMBECK_TILE_ZERO(2);
      LIMBECK_TILE_ZERO(3);
    }
    for (int64_t s = 0; s < p.segments; ++s) {
      const uint16_t* a = static_cast<const uint16_t*>(p.a) + s * p.a_segment_stride + row * kProductBlock;
      const uint16_t* b = static_cast<const uint16_t*>(p.b) + s * p.b_segment_stride;
      for (int64_t k = 0; k < p.blocks; ++k, a += p.a_block_stride, b += kProductArea) {
        LIMBECK_TILE_LOAD(4, a, kProductBlock * 2);
        LIMBECK_TILE_LOAD(6, b, kPairRow);
        LIMBECK_TILE_ADD_BFLOAT16(0, 4, 6);
        LIMBECK_TILE_LOAD(7, b + kProductBlock, kPairRow);
        LIMBECK_TILE_ADD_BFLOAT16(1, 4, 7);
        LIMBECK_TILE_LOAD(5, a + kHalf * kProductBlock, kProductBlock * 2);
        LIMBECK_TILE_ADD_BFLOAT16(2, 5, 6);
        LIMBECK_TILE_ADD_BFLOAT16(3, 5, 7);
      }
    }
    LIMBECK_TILE_STORE(0, c, kFloatRow);
    LIMBECK_TILE_STORE(1, c + kHalf, kFloatRow);
    LIMBECK_TILE_STORE(2, c + kHalf * kProductBlock, kFloatRow);
    LIMBECK_TILE_STORE(3, c + kHalf * kProductBlock + kHalf, kFloatRow);
  }
  LIMBECK_TILE_RELEASE();
}

}  // namespace limbeck::kernels
