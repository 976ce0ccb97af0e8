#include <cstdlib>

#include "kernels/cpu/bf16_products.h"
#include "kernels/cpu/cpu_isa.h"

namespace limbeck::kernels {

void bf16_tile_product(const TileProduct& p) {
#if defined(__x86_64__)
  if (product_isa() == CpuIsa::kAmx) return amx_product(p);
  if (product_isa() == CpuIsa::kAvx512Bf16) return avx512_bf16_product(p);
#endif
  (void)p;
  std::abort();  // no caller packs bfloat16 pairs on such a processor
}

}  // namespace limbeck::kernels
