// One source, several instruction sets: which of them this processor runs. The bodies (*.inc) are compiled once for
// each under a target pragma; the choice is made from the processor alone, so a machine always gives the same bits.
#pragma once
#include <cstdlib>
#include <string_view>

namespace limbeck::kernels {

enum class VectorTarget { kBaseline, kAvx2, kAvx512 };

// LIMBECK_VECTOR=baseline|avx2|avx512 caps it (tests run every body that the machine can); avx512_bf16 and amx, which
// tile_product.h knows, mean avx512 here.
inline VectorTarget vector_target() {
  static const VectorTarget target = [] {
    VectorTarget best = VectorTarget::kBaseline;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      best = VectorTarget::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best = VectorTarget::kAvx512;
    }
#endif
    const char* cap = std::getenv("LIMBECK_VECTOR");
    const std::string_view name = cap ? cap : "";
    if (name == "baseline") return VectorTarget::kBaseline;
    if (name == "avx2" && best == VectorTarget::kAvx512) return VectorTarget::kAvx2;
    return best;
  }();
  return target;
}

}  // namespace limbeck::kernels
