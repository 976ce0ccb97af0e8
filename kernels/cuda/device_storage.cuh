// Widening loads and rounding stores on the GPU, and sum and maximum over a thread block. For .cu files only.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/operator/storage.h"

namespace limbeck::kernels {

template <class T>
struct DeviceType {
  using Type = T;
};
template <>
struct DeviceType<BFloat16Bits> {
  using Type = __nv_bfloat16;
};
template <>
struct DeviceType<Float16Bits> {
  using Type = __half;
};

template <class T>
struct DeviceCompute {
  using Type = float;
};
template <>
struct DeviceCompute<double> {
  using Type = double;
};

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ double widened(double value) { return value; }
__device__ __forceinline__ float widened(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widened(__half value) { return __half2float(value); }

__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put(double* to, double value) { *to = value; }
__device__ __forceinline__ void put(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }
__device__ __forceinline__ void put(__half* to, float value) { *to = __float2half_rn(value); }

// As many values as one instruction moves where pointers and strides allow it (16 bytes), else one at a time.
template <class T, int elements>
struct alignas(sizeof(T) * elements) Pack {
  T value[elements];
};
template <class T>
inline constexpr int kPackElements = 16 / static_cast<int>(sizeof(T));

// Whether rows at `stride` elements from `base` can be read in packs. A null base always can.
template <class T>
bool packable(const void* base, int64_t stride) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride % kPackElements<T> == 0;
}

// The sum over a warp, in one order; every lane gets it.
template <class S>
__device__ __forceinline__ S warp_sum(S value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over the block, in an order that depends on the block size alone; every thread gets it. Threads: a multiple
// of 32.
template <class S>
__device__ __forceinline__ S block_sum(S value) {
  __shared__ S warp_sums[32];
  value = warp_sum(value);
  __syncthreads();  // the sums of an earlier call may still be read
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  S total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += warp_sums[warp];
  return total;
}

__device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }  // the number, where one is none

// The largest over the block; every thread gets it. Threads: a multiple of 32.
template <class S>
__device__ __forceinline__ S block_max(S value) {
  __shared__ S of_warps[32];
  for (int offset = 16; offset > 0; offset /= 2) value = larger(value, __shfl_xor_sync(0xffffffffu, value, offset));
  __syncthreads();  // the maxima of an earlier call may still be read
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) value = larger(value, of_warps[warp]);
  return value;
}

// Calls body(tag) with the device's element type, StorageTag<__nv_bfloat16> for example.
template <class Body>
void with_device_type(Storage storage, Body body) {
  with_storage(storage, [&](auto tag) { body(StorageTag<typename DeviceType<typename decltype(tag)::Type>::Type>{}); });
}

// The same where there is no body for float64.
template <class Body>
void with_narrow_device_type(Storage storage, Body body) {
  with_device_type(storage, [&](auto tag) {
    if constexpr (sizeof(typename decltype(tag)::Type) < sizeof(double)) body(tag);
  });
}

}  // namespace limbeck::kernels
