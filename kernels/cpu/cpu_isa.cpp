#include "kernels/cpu/cpu_isa.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

#if defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace limbeck::kernels {
namespace {

CpuIsa limit() {
  const char* wish = std::getenv("LIMBECK_VECTOR");
  const std::string_view name = wish ? wish : "";
  if (name == "baseline") return CpuIsa::kBaseline;
  if (name == "avx2") return CpuIsa::kAvx2;
  if (name == "avx512") return CpuIsa::kAvx512;
  if (name == "avx512_vnni") return CpuIsa::kAvx512Vnni;
  if (name == "avx512_bf16") return CpuIsa::kAvx512Bf16;
  TORCH_CHECK(name.empty() || name == "amx", "[kernels] LIMBECK_VECTOR=", name,
              ", wanted baseline, avx2, avx512, avx512_vnni, avx512_bf16 or amx");
  return CpuIsa::kAmx;
}

#if defined(__x86_64__)
CpuIsa vectors_of_processor() {
  const std::string capability = at::get_cpu_capability();
  __builtin_cpu_init();
  // AVX2 machines without the float16 conversions exist in theory only; asking costs nothing.
  if (!__builtin_cpu_supports("f16c")) return CpuIsa::kBaseline;
  if (capability.rfind("AVX512", 0) == 0) return CpuIsa::kAvx512;
  return capability.rfind("AVX", 0) == 0 ? CpuIsa::kAvx2 : CpuIsa::kBaseline;
}

// Linux hands out the tile registers on request, once for the process.
bool amx_granted() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuIsa products_of_processor(CpuIsa most) {
  if (cpu_isa() != CpuIsa::kAvx512 || !__builtin_cpu_supports("avx512vnni")) return cpu_isa();
  if (!__builtin_cpu_supports("avx512bf16")) return std::min(most, CpuIsa::kAvx512Vnni);
  return most == CpuIsa::kAmx && amx_granted() ? CpuIsa::kAmx : std::min(most, CpuIsa::kAvx512Bf16);
}
#else
CpuIsa vectors_of_processor() { return CpuIsa::kBaseline; }
CpuIsa products_of_processor(CpuIsa) { return CpuIsa::kBaseline; }
#endif

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa isa = std::min(vectors_of_processor(), limit());
  return isa;
}

CpuIsa product_isa() {
  static const CpuIsa isa = products_of_processor(limit());
  return isa;
}

}  // namespace limbeck::kernels
