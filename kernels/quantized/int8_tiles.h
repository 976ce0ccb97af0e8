// Sums of products of 8-bit codes in AMX's tile registers, 16 columns of y by 16 rows and 64 codes deep an instruction,
// for int8_dynamic_loops.cpp. The matrix is read as it lies; rows of x, of which there are fewer, are packed: four
// neighbouring codes of 16 rows side by side. What a tile gives is therefore on its side, and turned when it is added.
#pragma once
#include "kernels/cpu/panels.h"
#include "kernels/cpu/tile_registers.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kTileSide = 16, kTileDepth = 64, kTileBytes = kTileSide * kTileDepth;

// A tile in vectors, whatever numbers its words are.
typedef F32 TileRows[kTileSide];
static_assert(sizeof(TileRows) == kTileBytes);

LIMBECK_INLINE void transpose(TileRows& rows) { transpose_step<float, kTileSide / 2>(rows); }

// Rows of x [rows, depth], `stride` apart, as tiles [rounded up / 16][depth / 64]; where there is no row, of zeros.
void pack_rows(const int8_t* x, int64_t stride, int64_t rows, int64_t depth, int8_t* packed) {
  for (int64_t r = 0; r < rows; r += kTileSide) {
    for (int64_t k = 0; k < depth; k += kTileDepth, packed += kTileBytes) {
      TileRows words = {};
      for (int64_t i = 0; i < kTileSide && r + i < rows; ++i)
        __builtin_memcpy(&words[i], x + (r + i) * stride + k, sizeof words[i]);
      transpose(words);
      __builtin_memcpy(packed, words, sizeof words);
    }
  }
}

// `block` [columns][rows] to to[r * width + c]; what it holds is lost.
LIMBECK_INLINE void add_turned(TileRows& block, uint32_t* to, int64_t width) {
  transpose(block);
  for (int i = 0; i < kTileSide; ++i) {
    U32 sums;
    __builtin_memcpy(&sums, to + i * width, sizeof sums);
    sums += (U32)block[i];
    __builtin_memcpy(to + i * width, &sums, sizeof sums);
  }
}

// Adds to to[r * width + c] the products of `row_tiles` tiles of packed rows with 16 `column_tiles` rows of the matrix,
// `stride` apart; both are `depth` deep, whole tiles.
void add_tiles(const int8_t* packed, int64_t row_tiles, const int8_t* matrix, int64_t stride, int64_t column_tiles,
               int64_t depth, uint32_t* to, int64_t width) {
  const int64_t row_tile = depth * kTileSide;
  TileRows block;
  for (int64_t c = 0; c < column_tiles; c += 2) {
    const bool two_columns = c + 1 < column_tiles;
    const int8_t* w = matrix + c * kTileSide * stride;
    for (int64_t r = 0; r < row_tiles; r += 2) {
      const bool two_rows = r + 1 < row_tiles;
      const int8_t* x = packed + r * row_tile;
      LIMBECK_TILE_ZERO(0);
      LIMBECK_TILE_ZERO(1);
      LIMBECK_TILE_ZERO(2);
      LIMBECK_TILE_ZERO(3);
      for (int64_t k = 0; k < depth; k += kTileDepth) {
        LIMBECK_TILE_LOAD(4, w + k, stride);
        LIMBECK_TILE_LOAD(6, x + k * kTileSide, kTileDepth);
        LIMBECK_TILE_ADD_INT8(0, 4, 6);
        if (two_rows) {
          LIMBECK_TILE_LOAD(7, x + row_tile + k * kTileSide, kTileDepth);
          LIMBECK_TILE_ADD_INT8(1, 4, 7);
        }
        if (two_columns) {
          LIMBECK_TILE_LOAD(5, w + kTileSide * stride + k, stride);
          LIMBECK_TILE_ADD_INT8(2, 5, 6);
          if (two_rows) LIMBECK_TILE_ADD_INT8(3, 5, 7);
        }
      }
      uint32_t* here = to + r * kTileSide * width + c * kTileSide;
      LIMBECK_TILE_STORE(0, block, sizeof block[0]);
      add_turned(block, here, width);
      if (two_rows) {
        LIMBECK_TILE_STORE(1, block, sizeof block[0]);
        add_turned(block, here + kTileSide * width, width);
      }
      if (two_columns) {
        LIMBECK_TILE_STORE(2, block, sizeof block[0]);
        add_turned(block, here + kTileSide, width);
      }
      if (two_rows && two_columns) {
        LIMBECK_TILE_STORE(3, block, sizeof block[0]);
        add_turned(block, here + kTileSide * width + kTileSide, width);
      }
    }
  }
}

}  // namespace
}  // namespace limbeck::kernels::LIMBECK_ISA
