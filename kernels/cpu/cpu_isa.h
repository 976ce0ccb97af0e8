// Which build of the inner CPU loops this process runs: the best that the processor has, but no better than ATen's own
// choice (ATEN_CPU_CAPABILITY moves both) nor than LIMBECK_VECTOR=baseline|avx2|avx512|avx512_vnni|avx512_bf16|amx,
// which moves all of ours alone. Tests run every body that the machine has by it. A machine always gives the same bits.
#pragma once

namespace limbeck::kernels {

// Each has what those before it have.
enum class CpuIsa { kBaseline, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };

CpuIsa cpu_isa();      // of vectors: kAvx512 at most
CpuIsa product_isa();  // of products of bfloat16 and of 8-bit codes: beyond kAvx512 where the processor has that

}  // namespace limbeck::kernels

// LIMBECK_LOOPS(Type, name): declares the table `name` that each build of a *_loops.cpp file defines in its own
// namespace, name##_for(isa), which picks one, and name##_here(), the one of this process. LIMBECK_CODE_LOOPS: of a
// file that is built for AVX512-VNNI too, LIMBECK_TILE_LOOPS: for AMX as well. LIMBECK_BFLOAT16_LOOPS: for AVX512-BF16
// too; the caller says by name##_for() what is to be had from there.
#if defined(__x86_64__)
#define LIMBECK_LOOPS_OF(isa, Type, name) \
  namespace isa {                         \
  extern const Type name;                 \
  }
#define LIMBECK_LOOPS(Type, name)                                                                                    \
  LIMBECK_LOOPS_OF(isa_baseline, Type, name)                                                                         \
  LIMBECK_LOOPS_OF(isa_avx2, Type, name)                                                                             \
  LIMBECK_LOOPS_OF(isa_avx512, Type, name)                                                                           \
  inline const Type& name##_for(CpuIsa isa) {                                                                        \
    return isa >= CpuIsa::kAvx512 ? isa_avx512::name : (isa == CpuIsa::kAvx2 ? isa_avx2::name : isa_baseline::name); \
  }                                                                                                                  \
  inline const Type& name##_here() { return name##_for(cpu_isa()); }
// With a build `beyond` the others, for processors from `isa_of_it` on.
#define LIMBECK_LOOPS_BEYOND(beyond, isa_of_it, Type, name)            \
  LIMBECK_LOOPS_OF(isa_baseline, Type, name)                           \
  LIMBECK_LOOPS_OF(isa_avx2, Type, name)                               \
  LIMBECK_LOOPS_OF(isa_avx512, Type, name)                             \
  LIMBECK_LOOPS_OF(beyond, Type, name)                                 \
  inline const Type& name##_for(CpuIsa isa) {                          \
    if (isa >= isa_of_it) return beyond::name;                         \
    if (isa >= CpuIsa::kAvx512) return isa_avx512::name;               \
    return isa == CpuIsa::kAvx2 ? isa_avx2::name : isa_baseline::name; \
  }
#define LIMBECK_CODE_LOOPS(Type, name)                                   \
  LIMBECK_LOOPS_BEYOND(isa_avx512_vnni, CpuIsa::kAvx512Vnni, Type, name) \
  inline const Type& name##_here() { return name##_for(product_isa()); }
#define LIMBECK_TILE_LOOPS(Type, name)                                 \
  LIMBECK_LOOPS_OF(isa_baseline, Type, name)                           \
  LIMBECK_LOOPS_OF(isa_avx2, Type, name)                               \
  LIMBECK_LOOPS_OF(isa_avx512, Type, name)                             \
  LIMBECK_LOOPS_OF(isa_avx512_vnni, Type, name)                        \
  LIMBECK_LOOPS_OF(isa_amx, Type, name)                                \
  inline const Type& name##_for(CpuIsa isa) {                          \
    if (isa >= CpuIsa::kAmx) return isa_amx::name;                     \
    if (isa >= CpuIsa::kAvx512Vnni) return isa_avx512_vnni::name;      \
    if (isa >= CpuIsa::kAvx512) return isa_avx512::name;               \
    return isa == CpuIsa::kAvx2 ? isa_avx2::name : isa_baseline::name; \
  }                                                                    \
  inline const Type& name##_here() { return name##_for(product_isa()); }
#define LIMBECK_BFLOAT16_LOOPS(Type, name) LIMBECK_LOOPS_BEYOND(isa_avx512_bf16, CpuIsa::kAvx512Bf16, Type, name)
#else
#define LIMBECK_LOOPS(Type, name)                                      \
  namespace isa_baseline {                                             \
  extern const Type name;                                              \
  }                                                                    \
  inline const Type& name##_for(CpuIsa) { return isa_baseline::name; } \
  inline const Type& name##_here() { return name##_for(cpu_isa()); }
#define LIMBECK_CODE_LOOPS(Type, name) LIMBECK_LOOPS(Type, name)
#define LIMBECK_TILE_LOOPS(Type, name) LIMBECK_LOOPS(Type, name)
#define LIMBECK_BFLOAT16_LOOPS(Type, name) LIMBECK_LOOPS(Type, name)
#endif
