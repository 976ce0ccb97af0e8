// LIMBECK_FORMULA marks a function that is a formula once for both devices: device code in a .cu, inlined everywhere.
#pragma once

#if defined(__CUDACC__)
#define LIMBECK_FORMULA __host__ __device__ __forceinline__
#else
#define LIMBECK_FORMULA inline __attribute__((always_inline))
#endif
