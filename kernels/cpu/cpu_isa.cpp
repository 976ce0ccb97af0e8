#include "kernels/cpu/cpu_isa.h"

#include <ATen/Version.h>

#include <string>

namespace limbeck::kernels {

CpuIsa cpu_isa() {
  static const CpuIsa isa = [] {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    __builtin_cpu_init();
    // AVX2 machines without the float16 conversions exist in theory only; asking costs nothing.
    const bool converts_float16 = __builtin_cpu_supports("f16c");
    if (capability.rfind("AVX512", 0) == 0 && converts_float16) return CpuIsa::kAvx512;
    if (capability.rfind("AVX", 0) == 0 && converts_float16) return CpuIsa::kAvx2;
#endif
    return CpuIsa::kBaseline;
  }();
  return isa;
}

}  // namespace limbeck::kernels
