#include "fake_cuda/probe_kernels.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace limbeck::test {
namespace {

template <Fault fault>
__device__ float block_sum(float value) {
  __shared__ float warp_sums[32];
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  if (fault != Fault::kNoBarrierBefore) __syncthreads();
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  if (fault != Fault::kNoBarrierAfter) __syncthreads();
  float total = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += warp_sums[warp];
  return total;
}

template <Fault fault>
__global__ void block_sums(const float* x, float* out) {
  const float own = x[blockIdx.x * blockDim.x + threadIdx.x];
  const float sum = block_sum<fault>(own), squares = block_sum<fault>(own * own);
  // The last thread's, which a warp that ran ahead would have spoilt.
  if (threadIdx.x == blockDim.x - 1) {
    out[blockIdx.x] = sum;
    out[gridDim.x + blockIdx.x] = squares;
  }
}

__global__ void meet_in_part() {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void meet_in_two_places() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void exchange_with_who_left() {
  if (threadIdx.x == 3) return;
  __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}

__global__ void exchange_beyond_the_mask() {
  if (threadIdx.x < 2) __shfl_sync(3u, 1.0f, 5);
}

__global__ void copy(const float* from, float* to, int64_t count, int64_t offset) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i + offset];
}

__global__ void fill(float* to, int64_t count, float value) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) to[i] = value;
}

__global__ void reversed(const float* x, float* out) {
  extern __shared__ float values[];
  const unsigned begin = blockIdx.x * blockDim.x;
  values[threadIdx.x] = x[begin + threadIdx.x];
  __syncthreads();
  out[begin + threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void histogram(const int* x, int* bins, unsigned count) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) atomicAdd(bins + x[i], 1);
}

__global__ void shifted_down(const float* x, float* out, unsigned lanes) {
  const float value = __shfl_down_sync(0xffffffffu, x[threadIdx.x], lanes);
  __syncwarp();
  out[threadIdx.x] = value;
}

__global__ void rounded(const float* x, float* as_float16, float* as_bfloat16, unsigned count) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  as_float16[i] = __half2float(__float2half_rn(x[i]));
  as_bfloat16[i] = __bfloat162float(__float2bfloat16_rn(x[i]));
}

unsigned blocks_of(int64_t count) { return static_cast<unsigned>((count + 63) / 64); }

}  // namespace

void launch_block_sums(Fault fault, const float* x, float* out, unsigned blocks, unsigned threads) {
  switch (fault) {
    case Fault::kNone:
      return block_sums<Fault::kNone><<<blocks, threads>>>(x, out);
    case Fault::kNoBarrierBefore:
      return block_sums<Fault::kNoBarrierBefore><<<blocks, threads>>>(x, out);
    case Fault::kNoBarrierAfter:
      return block_sums<Fault::kNoBarrierAfter><<<blocks, threads>>>(x, out);
  }
}

void launch_meeting(Meeting meeting, unsigned threads) {
  switch (meeting) {
    case Meeting::kPartOfABlock:
      return meet_in_part<<<1, threads>>>();
    case Meeting::kTwoPlaces:
      return meet_in_two_places<<<1, threads>>>();
    case Meeting::kLaneThatLeft:
      return exchange_with_who_left<<<1, threads>>>();
    case Meeting::kLaneOutsideOfTheMask:
      return exchange_beyond_the_mask<<<1, threads>>>();
  }
}

void launch_copy(const float* from, float* to, int64_t count, int64_t offset) {
  copy<<<blocks_of(count), 64>>>(from, to, count, offset);
}

void launch_fill(float* to, int64_t count, float value) { fill<<<blocks_of(count), 64>>>(to, count, value); }

void launch_fill_on(float* to, int64_t count, float value, int stream) {
  fill<<<blocks_of(count), 64, 0, reinterpret_cast<cudaStream_t>(static_cast<intptr_t>(stream))>>>(to, count, value);
}

void launch_reversed(const float* x, float* out, unsigned blocks, unsigned threads, unsigned elements) {
  reversed<<<blocks, threads, elements * sizeof(float)>>>(x, out);
}

void launch_histogram(const int* x, int* bins, unsigned count) { histogram<<<blocks_of(count), 64>>>(x, bins, count); }

void launch_shifted_down(const float* x, float* out, unsigned threads, unsigned lanes) {
  shifted_down<<<1, threads>>>(x, out, lanes);
}

void launch_rounded(const float* x, float* as_float16, float* as_bfloat16, unsigned count) {
  rounded<<<blocks_of(count), 64>>>(x, as_float16, as_bfloat16, count);
}

}  // namespace limbeck::test
