// RMSNorm and LayerNorm on CUDA: one thread block a row for y and grad_x; weight gradients by columns over fixed blocks
// of rows, then over the blocks in order (no atomics), so that equal shapes give equal bits.
#include "kernels/cuda/device_storage.cuh"
#include "kernels/norm/norm_cuda.h"

namespace limbeck::kernels {
namespace {

// From the width alone, because the order of the sums follows it.
int threads_for(int64_t width) {
  int threads = 64;
  while (threads < 512 && threads * 8 < width) threads *= 2;
  return threads;
}

// body(column, count) over the row, a pack at a time: `whole` packs, read and written in one access each, or element by
// element, the last pack perhaps of fewer. The sums of a thread have one order in both, so strides change no bit.
template <class T, bool whole, class Body>
__device__ __forceinline__ void for_packs(int64_t width, Body body) {
  constexpr int kPack = kPackElements<T>;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kPack; i < width; i += blockDim.x * kPack) {
    body(i, whole || width - i > kPack ? kPack : static_cast<int>(width - i));
  }
}

// body(j) for the elements of a pack that are there. The loop's length is fixed: an array that is indexed by a number
// known later alone lives in memory and not in registers.
template <class T, bool whole, class Body>
__device__ __forceinline__ void for_elements(int count, Body body) {
  for (int j = 0; j < kPackElements<T>; ++j) {
    if (whole || j < count) body(j);
  }
}

template <bool whole, class T>
__device__ __forceinline__ Pack<T, kPackElements<T>> load_pack(const T* from, int count) {
  if constexpr (whole) {
    return *reinterpret_cast<const Pack<T, kPackElements<T>>*>(from);
  } else {
    Pack<T, kPackElements<T>> pack{};
    for_elements<T, whole>(count, [&](int j) { pack.value[j] = from[j]; });
    return pack;
  }
}
template <bool whole, class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, kPackElements<T>>& pack, int count) {
  if constexpr (whole) {
    *reinterpret_cast<Pack<T, kPackElements<T>>*>(to) = pack;
  } else {
    for_elements<T, whole>(count, [&](int j) { to[j] = pack.value[j]; });
  }
}

template <class S>
__device__ __forceinline__ S inverse_root(S value) {
  return S(1) / sqrt(value);
}

template <class T, bool whole, bool layer>
__global__ void norm_forward(NormForward a) {
  using S = typename DeviceCompute<T>::Type;
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.x) + row * a.x_row;
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y) + row * a.width;
  const S width = static_cast<S>(a.width);
  const S offset = a.unit_offset ? 1 : 0;
  S mean = 0;
  if constexpr (layer) {
    S sum = 0;
    for_packs<T, whole>(a.width, [&](int64_t i, int count) {
      const auto in = load_pack<whole>(x + i, count);
      for_elements<T, whole>(count, [&](int j) { sum += widened(in.value[j]); });
    });
    mean = block_sum(sum) / width;
  }
  S squares = 0;
  for_packs<T, whole>(a.width, [&](int64_t i, int count) {
    const auto in = load_pack<whole>(x + i, count);
    for_elements<T, whole>(count, [&](int j) {
      const S centered = widened(in.value[j]) - mean;
      squares += centered * centered;
    });
  });
  const S rstd = inverse_root(block_sum(squares) / width + static_cast<S>(a.eps));
  if (threadIdx.x == 0) {
    if constexpr (layer) static_cast<S*>(a.mean)[row] = mean;
    static_cast<S*>(a.rstd)[row] = rstd;
  }
  for_packs<T, whole>(a.width, [&](int64_t i, int count) {
    const auto in = load_pack<whole>(x + i, count), scale = load_pack<whole>(weight + i, count);
    Pack<T, kPackElements<T>> out{};
    for_elements<T, whole>(count, [&](int j) {
      S value = (widened(in.value[j]) - mean) * rstd * (offset + widened(scale.value[j]));
      if constexpr (layer) {
        if (bias != nullptr) value += widened(bias[i + j]);
      }
      put(&out.value[j], value);
    });
    store_pack<whole>(y + i, out, count);
  });
}

// The derivations stand beside the CPU loops (norm_loops.cpp).
template <class T, bool whole, bool layer>
__global__ void norm_backward_x(NormBackward a) {
  using S = typename DeviceCompute<T>::Type;
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.x) + row * a.x_row;
  const T* grad = static_cast<const T*>(a.grad) + row * a.grad_row;
  const T* weight = static_cast<const T*>(a.weight);
  T* grad_x = static_cast<T*>(a.grad_x) + row * a.width;
  const S width = static_cast<S>(a.width);
  const S offset = a.unit_offset ? 1 : 0;
  const S rstd = static_cast<const S*>(a.rstd)[row];
  S mean = 0;
  if constexpr (layer) mean = static_cast<const S*>(a.mean)[row];
  S grads = 0, products = 0;
  for_packs<T, whole>(a.width, [&](int64_t i, int count) {
    const auto in = load_pack<whole>(x + i, count), g = load_pack<whole>(grad + i, count);
    const auto scale = load_pack<whole>(weight + i, count);
    for_elements<T, whole>(count, [&](int j) {
      const S scaled = widened(g.value[j]) * (offset + widened(scale.value[j]));
      grads += scaled;
      products += scaled * ((widened(in.value[j]) - mean) * rstd);
    });
  });
  const S mean_product = block_sum(products) / width;
  S mean_grad = 0;
  if constexpr (layer) mean_grad = block_sum(grads) / width;
  for_packs<T, whole>(a.width, [&](int64_t i, int count) {
    const auto in = load_pack<whole>(x + i, count), g = load_pack<whole>(grad + i, count);
    const auto scale = load_pack<whole>(weight + i, count);
    Pack<T, kPackElements<T>> out{};
    for_elements<T, whole>(count, [&](int j) {
      const S scaled = widened(g.value[j]) * (offset + widened(scale.value[j]));
      const S normalized = (widened(in.value[j]) - mean) * rstd;
      put(&out.value[j], (scaled - mean_grad - normalized * mean_product) * rstd);
    });
    store_pack<whole>(grad_x + i, out, count);
  });
}

// One thread a column, one grid row a block of rows.
template <class T, bool layer>
__global__ void norm_backward_partial(NormBackward a, int64_t rows, int64_t per_block) {
  using S = typename DeviceCompute<T>::Type;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= a.width) return;
  const int64_t block = blockIdx.y, begin = block * per_block;
  const int64_t end = begin + per_block < rows ? begin + per_block : rows;
  S weight_sum = 0, bias_sum = 0;
  for (int64_t row = begin; row < end; ++row) {
    const S grad = widened(static_cast<const T*>(a.grad)[row * a.grad_row + column]);
    S x = widened(static_cast<const T*>(a.x)[row * a.x_row + column]);
    if constexpr (layer) x -= static_cast<const S*>(a.mean)[row];
    weight_sum += grad * (x * static_cast<const S*>(a.rstd)[row]);
    bias_sum += grad;
  }
  if (a.partial_weight != nullptr) static_cast<S*>(a.partial_weight)[block * a.width + column] = weight_sum;
  if (a.partial_bias != nullptr) static_cast<S*>(a.partial_bias)[block * a.width + column] = bias_sum;
}

template <class T>
__global__ void sum_blocks(const typename DeviceCompute<T>::Type* partial, int64_t blocks, int64_t width, T* out) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= width) return;
  typename DeviceCompute<T>::Type sum = 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block * width + column];
  put(out + column, sum);
}

constexpr int kColumnThreads = 128;
unsigned column_blocks(int64_t width) { return static_cast<unsigned>((width + kColumnThreads - 1) / kColumnThreads); }

template <bool layer>
void launch_forward(Storage storage, const NormForward& a, int64_t rows, cudaStream_t stream) {
  if (rows == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const int threads = threads_for(a.width);
    const auto grid = static_cast<unsigned>(rows);
    if (packable<T>(a.x, a.x_row) && packable<T>(a.y, a.width) && packable<T>(a.weight, 0)) {
      norm_forward<T, true, layer><<<grid, threads, 0, stream>>>(a);
    } else {
      norm_forward<T, false, layer><<<grid, threads, 0, stream>>>(a);
    }
  });
}

template <bool layer>
void launch_backward(Storage storage, const NormBackward& a, int64_t rows, int64_t per_block, cudaStream_t stream) {
  if (rows == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const int threads = threads_for(a.width);
    const auto grid = static_cast<unsigned>(rows);
    if (a.grad_x != nullptr) {
      if (packable<T>(a.x, a.x_row) && packable<T>(a.grad, a.grad_row) && packable<T>(a.grad_x, a.width) &&
          packable<T>(a.weight, 0)) {
        norm_backward_x<T, true, layer><<<grid, threads, 0, stream>>>(a);
      } else {
        norm_backward_x<T, false, layer><<<grid, threads, 0, stream>>>(a);
      }
    }
    if (a.partial_weight != nullptr || a.partial_bias != nullptr) {
      const dim3 blocks(column_blocks(a.width), static_cast<unsigned>((rows + per_block - 1) / per_block));
      norm_backward_partial<T, layer><<<blocks, kColumnThreads, 0, stream>>>(a, rows, per_block);
    }
  });
}

}  // namespace

void launch_norm_forward(Storage storage, const NormForward& args, int64_t rows, cudaStream_t stream) {
  args.mean == nullptr ? launch_forward<false>(storage, args, rows, stream)
                       : launch_forward<true>(storage, args, rows, stream);
}
void launch_norm_backward(Storage storage, const NormBackward& args, int64_t rows, int64_t rows_per_block,
                          cudaStream_t stream) {
  args.mean == nullptr ? launch_backward<false>(storage, args, rows, rows_per_block, stream)
                       : launch_backward<true>(storage, args, rows, rows_per_block, stream);
}

void launch_sum_blocks(Storage storage, const void* partial, int64_t blocks, int64_t width, void* out,
                       cudaStream_t stream) {
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    using S = typename DeviceCompute<T>::Type;
    sum_blocks<T><<<column_blocks(width), kColumnThreads, 0, stream>>>(static_cast<const S*>(partial), blocks, width,
                                                                       static_cast<T*>(out));
  });
}

}  // namespace limbeck::kernels
