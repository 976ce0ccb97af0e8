// The bodies of bf16_tile_product, each compiled for its instruction set (kernels/CMakeLists.txt).
#pragma once
#include "kernels/cpu/tile_product.h"

namespace limbeck::kernels {

void avx512_bf16_product(const TileProduct& p);
void amx_product(const TileProduct& p);

}  // namespace limbeck::kernels
