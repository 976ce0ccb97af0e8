// AMX: 2 x 2 tiles of 16 x 16.
#include <immintrin.h>

#include "kernels/cpu/bf16_products.h"

namespace limbeck::kernels {
namespace {

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace

void amx_product(const TileProduct& p) {
  static const TileConfiguration configuration;
  constexpr int64_t kHalf = 16, kFloatRow = kProductBlock * sizeof(float), kPairRow = 2 * kProductBlock * 2;
  _tile_loadconfig(&configuration);
  for (int64_t row = 0; row < p.rows; row += kProductBlock) {
    float* c = p.c + row * kProductBlock;
    if (p.accumulate) {
      _tile_loadd(0, c, kFloatRow);
      _tile_loadd(1, c + kHalf, kFloatRow);
      _tile_loadd(2, c + kHalf * kProductBlock, kFloatRow);
      _tile_loadd(3, c + kHalf * kProductBlock + kHalf, kFloatRow);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t s = 0; s < p.segments; ++s) {
      const uint16_t* a = static_cast<const uint16_t*>(p.a) + s * p.a_segment_stride + row * kProductBlock;
      const uint16_t* b = static_cast<const uint16_t*>(p.b) + s * p.b_segment_stride;
      for (int64_t k = 0; k < p.blocks; ++k, a += p.a_block_stride, b += kProductArea) {
        _tile_loadd(4, a, kProductBlock * 2);
        _tile_loadd(6, b, kPairRow);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + kProductBlock, kPairRow);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + kHalf * kProductBlock, kProductBlock * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, c, kFloatRow);
    _tile_stored(1, c + kHalf, kFloatRow);
    _tile_stored(2, c + kHalf * kProductBlock, kFloatRow);
    _tile_stored(3, c + kHalf * kProductBlock + kHalf, kFloatRow);
  }
  _tile_release();
}

}  // namespace limbeck::kernels
