// In the place of the CUDA toolkit's header: what our .cu files use of CUDA C++, as plain C++ over
// tests/fake_cuda/launch.h. A kernel that needs more adds it here, with the meaning that the CUDA C++ programming guide
// gives it.
#pragma once
#include <math.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "fake_cuda/host_pages.h"
#include "fake_cuda/launch.h"
#include "fake_cuda/streams.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)

using dim3 = limbeck::fake_cuda::Index3;
using cudaStream_t = struct CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidDevice = 101,
  cudaErrorHostMemoryAlreadyRegistered = 712,
  cudaErrorHostMemoryNotRegistered = 713
};
inline constexpr unsigned cudaEventDefault = 0, cudaEventDisableTiming = 2, cudaHostRegisterDefault = 0;

inline const char* cudaGetErrorString(cudaError_t code) {
  switch (code) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorHostMemoryAlreadyRegistered:
      return "part or all of the requested memory range is already mapped";
    case cudaErrorHostMemoryNotRegistered:
      return "pointer does not correspond to a registered memory region";
  }
  return "unknown error";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }  // no launch is refused by it: see CUDAException.h

inline cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned /*flags*/) {
  return static_cast<cudaError_t>(limbeck::fake_cuda::register_pages(memory, bytes));
}
inline cudaError_t cudaHostUnregister(void* memory) {
  return limbeck::fake_cuda::unregister_pages(memory) ? cudaSuccess : cudaErrorHostMemoryNotRegistered;
}

enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= limbeck::fake_cuda::device_count()) return cudaErrorInvalidDevice;
  const int capability = limbeck::fake_cuda::compute_capability();
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability / 10 : capability % 10;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  if (device < 0 || device >= limbeck::fake_cuda::device_count()) return cudaErrorInvalidDevice;
  std::snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", static_cast<unsigned>(device) + 1);
  return cudaSuccess;
}

extern limbeck::fake_cuda::Index3 threadIdx, blockIdx, blockDim, gridDim;

#define __syncthreads() ::limbeck::fake_cuda::meet_block(__FILE__, __LINE__)
// Threads change only where they wait, so what one has written the others see.
inline void __threadfence() {}
#define __syncwarp(...)                                                                                             \
  ::limbeck::fake_cuda::exchanged_in_warp(~0u __VA_OPT__(&) __VA_ARGS__, 0, ::limbeck::fake_cuda::lane(), __FILE__, \
                                          __LINE__)
#define __shfl_sync(mask, value, source) \
  ::limbeck::fake_cuda::exchanged_in_warp(mask, value, source, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, lanes) \
  ::limbeck::fake_cuda::exchanged_in_warp(mask, value, ::limbeck::fake_cuda::lane() ^ (lanes), __FILE__, __LINE__)
// A lane that would take from beyond its warp gets its own value.
#define __shfl_down_sync(mask, value, lanes)                                                           \
  ::limbeck::fake_cuda::exchanged_in_warp(mask, value,                                                 \
                                          ::limbeck::fake_cuda::lane() + static_cast<int>(lanes) < 32  \
                                              ? ::limbeck::fake_cuda::lane() + static_cast<int>(lanes) \
                                              : ::limbeck::fake_cuda::lane(),                          \
                                          __FILE__, __LINE__)

namespace limbeck::fake_cuda {

template <class T>
T exchanged_in_warp(unsigned mask, T value, int source, const char* file, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bytes = 0;
  std::memcpy(&bytes, &value, sizeof(T));
  bytes = exchange(mask, bytes, source, file, line);
  std::memcpy(&value, &bytes, sizeof(T));
  return value;
}

}  // namespace limbeck::fake_cuda

// Threads change only where they wait, so nothing comes between the two halves.
template <class T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
template <class T>
T atomicMax(T* to, T value) {
  const T before = *to;
  if (value > before) *to = value;
  return before;
}
