// Products of 8-bit codes on CUDA: the codes of rows of x, the sums of products of codes, and what the sums stand for.
// Every number is that of int8_dynamic_loops.cpp, to the bit.
#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/quantized/int8_dynamic_cuda.h"

namespace limbeck::kernels {
namespace {

constexpr int kThreads = 256, kProductThreads = 128, kWarp = 32, kPackCodes = 16, kRowsOfWarp = 2;

__device__ __forceinline__ float quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

__device__ __forceinline__ float rounded_sum(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// Four products of the codes of two words.
__device__ __forceinline__ int with_products(uint32_t a, uint32_t b, int sum) {
#if defined(__CUDA_ARCH__)
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
#else
  for (int shift = 0; shift < 32; shift += 8)
    sum += static_cast<int>(static_cast<int8_t>(a >> shift)) * static_cast<int8_t>(b >> shift);
  return sum;
#endif
}

// As integers magnitudes are in order, infinity and NaN above all.
__device__ __forceinline__ int magnitude_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<int>(bits & 0x7fffffffu);
}

// A block takes a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    row_codes(const T* all, int64_t columns, float steps, int8_t* codes, float* scales) {
  const int64_t row = blockIdx.x;
  const T* x = all + row * columns;
  int most = 0;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
    const int bits = magnitude_bits(widened(x[i]));
    most = larger(most, bits);
  }
  constexpr uint32_t kInfinity = 0x7f800000u, kNan = 0x7fc00000u;
  const auto largest = static_cast<uint32_t>(block_max(most));
  const bool finite = largest < kInfinity;
  const float scale = finite ? quotient(float_of_bits(largest), steps) : 0.0f;
  if (threadIdx.x == 0) scales[row] = finite ? scale : float_of_bits(kNan);
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
    float code = scale == 0.0f ? 0.0f : quotient(widened(x[i]), scale);
    code = code > 127.0f ? 127.0f : code < -128.0f ? -128.0f : code;
    codes[row * columns + i] = static_cast<int8_t>(rintf(code));
  }
}

template <class T>
__device__ __forceinline__ void put_product(T* y, int sum, float scale_x, float scale_w, const T* bias) {
  const float product = rounded_product(rounded_product(static_cast<float>(sum), scale_x), scale_w);
  put(y, rounded_sum(product, bias == nullptr ? 0.0f : widened(*bias)));
}

// A warp takes an output row and a few rows of x: lane after lane a pack of codes, then the sum over the lanes.
template <class T, int codes>
__global__ void __launch_bounds__(kProductThreads) few_rows_of_codes(Int8Sums p) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kProductThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t groups = rounded_up_quotient(p.count, kRowsOfWarp), row = warp / groups;
  const int64_t first_x = warp % groups * kRowsOfWarp;
  if (row >= p.weight.rows) return;  // a whole warp
  const int64_t columns = p.weight.columns;
  const auto* w = static_cast<const int8_t*>(p.weight.codes) + row * columns;
  const int8_t* x = p.codes + first_x * columns;
  const int64_t second = first_x + 1 < p.count ? columns : 0;  // where there is none, the first one again
  int sums[kRowsOfWarp] = {};
  for (int64_t column = lane * codes; column < columns; column += kWarp * codes) {
    if constexpr (codes == 1) {
      sums[0] += static_cast<int>(w[column]) * x[column];
      sums[1] += static_cast<int>(w[column]) * x[second + column];
    } else {
      using Words = Pack<uint32_t, 4>;
      const auto of_w = *reinterpret_cast<const Words*>(w + column);
      const auto of_x = *reinterpret_cast<const Words*>(x + column);
      const auto of_second = *reinterpret_cast<const Words*>(x + second + column);
      for (int i = 0; i < 4; ++i) {
        sums[0] = with_products(of_w.value[i], of_x.value[i], sums[0]);
        sums[1] = with_products(of_w.value[i], of_second.value[i], sums[1]);
      }
    }
  }
  const auto* bias = static_cast<const T*>(p.bias);
  for (int r = 0; r < kRowsOfWarp; ++r) {
    const int sum = warp_sum(sums[r]);
    if (lane != r || first_x + r >= p.count) continue;
    put_product(static_cast<T*>(p.y) + (first_x + r) * p.weight.rows + row, sum, p.scales[first_x + r],
                stored_scale(p.weight, row), bias == nullptr ? nullptr : bias + row);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) sums_to_values(Int8Sums p, const int32_t* sums) {
  const int64_t index = thread_number();
  if (index >= p.count * p.weight.rows) return;
  const int64_t of_x = index / p.weight.rows, row = index % p.weight.rows;
  const auto* bias = static_cast<const T*>(p.bias);
  put_product(static_cast<T*>(p.y) + index, sums[index], p.scales[of_x], stored_scale(p.weight, row),
              bias == nullptr ? nullptr : bias + row);
}

}  // namespace

void launch_row_codes(Storage storage, const void* x, int64_t count, int64_t columns, float steps, int8_t* codes,
                      float* scales, cudaStream_t stream) {
  if (count == 0) return;
  with_narrow_device_type(storage, [&](auto type) {
    using T = typename decltype(type)::Type;
    const auto* rows = static_cast<const T*>(x);
    row_codes<T><<<static_cast<unsigned>(count), kThreads, 0, stream>>>(rows, columns, steps, codes, scales);
  });
}

void launch_int8_product(Storage storage, const Int8Sums& product, cudaStream_t stream) {
  if (product.count == 0 || product.weight.rows == 0) return;
  const bool packs = product.weight.columns % kPackCodes == 0 &&
                     reinterpret_cast<uintptr_t>(product.weight.codes) % kPackCodes == 0 &&
                     reinterpret_cast<uintptr_t>(product.codes) % kPackCodes == 0;
  const int64_t warps = product.weight.rows * rounded_up_quotient(product.count, kRowsOfWarp);
  const unsigned blocks = blocks_for(warps, kProductThreads / kWarp);
  with_narrow_device_type(storage, [&](auto type) {
    using T = typename decltype(type)::Type;
    if (packs) {
      few_rows_of_codes<T, kPackCodes><<<blocks, kProductThreads, 0, stream>>>(product);
    } else {
      few_rows_of_codes<T, 1><<<blocks, kProductThreads, 0, stream>>>(product);
    }
  });
}

void launch_int8_values(Storage storage, const Int8Sums& product, const int32_t* sums, cudaStream_t stream) {
  if (product.count == 0 || product.weight.rows == 0) return;
  with_narrow_device_type(storage, [&](auto type) {
    using T = typename decltype(type)::Type;
    const unsigned blocks = blocks_for(product.count * product.weight.rows, kThreads);
    sums_to_values<T><<<blocks, kThreads, 0, stream>>>(product, sums);
  });
}

}  // namespace limbeck::kernels
