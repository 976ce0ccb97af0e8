// Which build of the inner CPU loops this process runs: the best that the processor has, but no better than ATen's own
// choice (ATEN_CPU_CAPABILITY moves both) nor than LIMBECK_VECTOR=baseline|avx2|avx512|avx512_bf16|amx, which moves all
// of ours alone. Tests run every body that the machine has by it. A machine always gives the same bits.
#pragma once

namespace limbeck::kernels {

enum class CpuIsa { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };  // each has what those before it have

CpuIsa cpu_isa();      // of vectors: kAvx512 at most
CpuIsa product_isa();  // of products of bfloat16: kAvx512Bf16 or kAmx where the processor has them, else cpu_isa()

}  // namespace limbeck::kernels

// LIMBECK_LOOPS(Type, name): declares the table `name` that each build of a *_loops.cpp file defines in its own
// namespace, name##_for(isa), which picks one, and name##_here(), the one of this process.
#if defined(__x86_64__)
#define LIMBECK_LOOPS(Type, name)                                                                                    \
  namespace isa_baseline {                                                                                           \
  extern const Type name;                                                                                            \
  }                                                                                                                  \
  namespace isa_avx2 {                                                                                               \
  extern const Type name;                                                                                            \
  }                                                                                                                  \
  namespace isa_avx512 {                                                                                             \
  extern const Type name;                                                                                            \
  }                                                                                                                  \
  inline const Type& name##_for(CpuIsa isa) {                                                                        \
    return isa >= CpuIsa::kAvx512 ? isa_avx512::name : (isa == CpuIsa::kAvx2 ? isa_avx2::name : isa_baseline::name); \
  }                                                                                                                  \
  inline const Type& name##_here() { return name##_for(cpu_isa()); }
#else
#define LIMBECK_LOOPS(Type, name)                                      \
  namespace isa_baseline {                                             \
  extern const Type name;                                              \
  }                                                                    \
  inline const Type& name##_for(CpuIsa) { return isa_baseline::name; } \
  inline const Type& name##_here() { return name##_for(cpu_isa()); }
#endif
