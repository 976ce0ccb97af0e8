// AMX's tile registers in memory, as Intel's manual has their instructions: what int8_tiles.h does can be looked at on
// a processor that has none (LIMBECK_EMULATED_TILES, kernels/cpu/tile_registers.h).
#pragma once
#include <cstdint>
#include <cstring>

namespace limbeck::kernels {

struct Int8DynamicLoops;
namespace isa_emulated_amx {
extern const Int8DynamicLoops int8_dynamic_loops;
}

}  // namespace limbeck::kernels

namespace limbeck::test {

struct EmulatedTile {
  alignas(64) int8_t bytes[16][64];
};

inline EmulatedTile* emulated_tiles() {
  static thread_local EmulatedTile tiles[8];
  return tiles;
}

inline void load_tile(int tile, const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i)
    std::memcpy(emulated_tiles()[tile].bytes[i], static_cast<const int8_t*>(from) + i * stride, 64);
}

inline void store_tile(int tile, void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<int8_t*>(to) + i * stride, emulated_tiles()[tile].bytes[i], 64);
}

inline void add_int8(int sums, int a, int b) {
  EmulatedTile* tiles = emulated_tiles();
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      uint32_t sum = 0;
      std::memcpy(&sum, tiles[sums].bytes[i] + 4 * j, sizeof sum);
      for (int k = 0; k < 16; ++k) {
        for (int q = 0; q < 4; ++q)
          sum += static_cast<uint32_t>(int32_t{tiles[a].bytes[i][4 * k + q]} * int32_t{tiles[b].bytes[k][4 * j + q]});
      }
      std::memcpy(tiles[sums].bytes[i] + 4 * j, &sum, sizeof sum);
    }
  }
}

}  // namespace limbeck::test

#define LIMBECK_TILE_CONFIGURE(configuration) static_cast<void>(configuration)
// What a released register holds is lost.
#define LIMBECK_TILE_RELEASE() std::memset(static_cast<void*>(::limbeck::test::emulated_tiles()), 0x55, 8 * 1024)
#define LIMBECK_TILE_ZERO(tile) std::memset(&::limbeck::test::emulated_tiles()[tile], 0, 1024)
#define LIMBECK_TILE_LOAD(tile, from, stride) ::limbeck::test::load_tile(tile, from, stride)
#define LIMBECK_TILE_STORE(tile, to, stride) ::limbeck::test::store_tile(tile, to, stride)
#define LIMBECK_TILE_ADD_INT8(sums, a, b) ::limbeck::test::add_int8(sums, a, b)
