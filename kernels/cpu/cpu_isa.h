// Which build of the inner CPU loops this process runs. It follows ATen's own choice (ATEN_CPU_CAPABILITY included), so
// that one switch moves both.
#pragma once

namespace limbeck::kernels {

enum class CpuIsa { kBaseline, kAvx2, kAvx512 };

CpuIsa cpu_isa();

}  // namespace limbeck::kernels

// LIMBECK_LOOPS(Type, name): declares the table `name` that each build of a *_loops.cpp file defines in its own
// namespace, and name##_for(isa), which picks one.
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
    return isa == CpuIsa::kAvx512 ? isa_avx512::name : (isa == CpuIsa::kAvx2 ? isa_avx2::name : isa_baseline::name); \
  }
#else
#define LIMBECK_LOOPS(Type, name) \
  namespace isa_baseline {        \
  extern const Type name;         \
  }                               \
  inline const Type& name##_for(CpuIsa) { return isa_baseline::name; }
#endif
