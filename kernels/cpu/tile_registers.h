// AMX's eight tile registers of 16 rows of 64 bytes, by number, which the instructions want as a literal. Tests put an
// emulation in their place (LIMBECK_EMULATED_TILES).
#pragma once
#include <cstdint>

#if !defined(LIMBECK_EMULATED_TILES)
#include <immintrin.h>
#define LIMBECK_TILE_CONFIGURE(configuration) _tile_loadconfig(configuration)
#define LIMBECK_TILE_RELEASE() _tile_release()
#define LIMBECK_TILE_ZERO(tile) _tile_zero(tile)
#define LIMBECK_TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, stride)
#define LIMBECK_TILE_STORE(tile, to, stride) _tile_stored(tile, to, stride)
#define LIMBECK_TILE_ADD_INT8(sums, a, b) _tile_dpbssd(sums, a, b)
#define LIMBECK_TILE_ADD_BFLOAT16(sums, a, b) _tile_dpbf16ps(sums, a, b)
#endif

namespace limbeck::kernels {

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_a_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace limbeck::kernels
