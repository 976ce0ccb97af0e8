// RMSNorm and LayerNorm on CUDA: a warp a row for y and grad_x where it holds the row, a thread block otherwise; weight
// gradients by columns over fixed blocks of rows, then over the blocks in a fixed order (no atomics), so that equal
// shapes give equal bits.
#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/norm/norm_cuda.h"

namespace limbeck::kernels {
namespace {

// From the width alone, because the order of the sums follows it.
// The threads of one row: which row is theirs, which of them this is, how many they are, and their sums.
struct BlockOfRow {
  static __device__ __forceinline__ int64_t row() { return blockIdx.x; }
  static __device__ __forceinline__ unsigned thread() { return threadIdx.x; }
  static __device__ __forceinline__ unsigned threads() { return blockDim.x; }
  template <class S>
  static __device__ __forceinline__ S sum(S value) {
    return block_sum(value);
  }
};
constexpr int kRowsOfWarps = 8;  // rows a block
constexpr int kMostThreads = 512;
struct WarpOfRow {
  static __device__ __forceinline__ int64_t row() {
    return static_cast<int64_t>(blockIdx.x) * kRowsOfWarps + threadIdx.x / 32;
  }
  static __device__ __forceinline__ unsigned thread() { return threadIdx.x % 32; }
  static __device__ __forceinline__ unsigned threads() { return 32; }
  template <class S>
  static __device__ __forceinline__ S sum(S value) {
    return S(0) + warp_sum(value);  // a block's sum begins with 0, and so is never -0
  }
};

// body(column, count) over the row, a pack at a time: `whole` packs, read and written in one access each, or element by
// element, the last pack perhaps of fewer. The sums of a thread have one order in both, so strides change no bit.
template <class T, bool whole, class Team, class Body>
__device__ __forceinline__ void for_packs(int64_t width, Body body) {
  constexpr int kPack = kPackElements<T>;
  for (int64_t i = static_cast<int64_t>(Team::thread()) * kPack; i < width; i += Team::threads() * kPack) {
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

template <class T, bool whole, bool layer, class Team>
__global__ void norm_forward(NormForward a, int64_t rows) {
  using S = typename DeviceCompute<T>::Type;
  const int64_t row = Team::row();
  if (row >= rows) return;
  const T* x = static_cast<const T*>(a.x) + row * a.x_row;
  const T* weight = static_cast<const T*>(a.weight);
  const T* bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y) + row * a.width;
  const S width = static_cast<S>(a.width);
  const S offset = a.unit_offset ? 1 : 0;
  S mean = 0;
  if constexpr (layer) {
    S sum = 0;
    for_packs<T, whole, Team>(a.width, [&](int64_t i, int count) {
      const auto in = load_pack<whole>(x + i, count);
      for_elements<T, whole>(count, [&](int j) { sum += widened(in.value[j]); });
    });
    mean = Team::sum(sum) / width;
  }
  S squares = 0;
  for_packs<T, whole, Team>(a.width, [&](int64_t i, int count) {
    const auto in = load_pack<whole>(x + i, count);
    for_elements<T, whole>(count, [&](int j) {
      const S centered = widened(in.value[j]) - mean;
      squares += centered * centered;
    });
  });
  const S rstd = inverse_root(Team::sum(squares) / width + static_cast<S>(a.eps));
  if (Team::thread() == 0) {
    if constexpr (layer) static_cast<S*>(a.mean)[row] = mean;
    static_cast<S*>(a.rstd)[row] = rstd;
  }
  for_packs<T, whole, Team>(a.width, [&](int64_t i, int count) {
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
template <class T, bool whole, bool layer, class Team>
__global__ void norm_backward_x(NormBackward a, int64_t rows) {
  using S = typename DeviceCompute<T>::Type;
  const int64_t row = Team::row();
  if (row >= rows) return;
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
  for_packs<T, whole, Team>(a.width, [&](int64_t i, int count) {
    const auto in = load_pack<whole>(x + i, count), g = load_pack<whole>(grad + i, count);
    const auto scale = load_pack<whole>(weight + i, count);
    for_elements<T, whole>(count, [&](int j) {
      const S scaled = widened(g.value[j]) * (offset + widened(scale.value[j]));
      grads += scaled;
      products += scaled * ((widened(in.value[j]) - mean) * rstd);
    });
  });
  const S mean_product = Team::sum(products) / width;
  S mean_grad = 0;
  if constexpr (layer) mean_grad = Team::sum(grads) / width;
  for_packs<T, whole, Team>(a.width, [&](int64_t i, int count) {
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
  const int64_t column = thread_number();
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

// The slices of a thread block each add every kSlices-th block of rows, one warp 32 columns; then the slices in order.
constexpr int kSlices = 8;
template <class T>
__global__ void sum_blocks(const typename DeviceCompute<T>::Type* partial, int64_t blocks, int64_t width, T* out) {
  using S = typename DeviceCompute<T>::Type;
  __shared__ S sums[kSlices][32];
  const int lane = threadIdx.x % 32, slice = threadIdx.x / 32;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 32 + lane;
  S sum = 0;
  if (column < width) {
    for (int64_t block = slice; block < blocks; block += kSlices) sum += partial[block * width + column];
  }
  sums[slice][lane] = sum;
  __syncthreads();
  if (slice != 0 || column >= width) return;
  for (int other = 1; other < kSlices; ++other) sum += sums[other][lane];
  put(out + column, sum);
}

constexpr int kColumnThreads = 128;

// Calls body(team, grid, threads). A warp holds a row of one pack a lane; its sums then have the bits of a block's.
template <class T, class Body>
void with_team(int64_t width, int64_t rows, Body body) {
  if (width <= 32 * kPackElements<T>) {
    body(WarpOfRow{}, blocks_for(rows, kRowsOfWarps), 32 * kRowsOfWarps);
  } else {
    body(BlockOfRow{}, static_cast<unsigned>(rows), threads_of_row(width, kMostThreads));
  }
}

template <bool layer>
void launch_forward(Storage storage, const NormForward& a, int64_t rows, cudaStream_t stream) {
  if (rows == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    with_team<T>(a.width, rows, [&](auto team, unsigned grid, int threads) {
      using Team = decltype(team);
      if (packable<T>(a.x, a.x_row) && packable<T>(a.y, a.width) && packable<T>(a.weight, 0)) {
        norm_forward<T, true, layer, Team><<<grid, threads, 0, stream>>>(a, rows);
      } else {
        norm_forward<T, false, layer, Team><<<grid, threads, 0, stream>>>(a, rows);
      }
    });
  });
}

template <bool layer>
void launch_backward(Storage storage, const NormBackward& a, int64_t rows, int64_t per_block, cudaStream_t stream) {
  if (rows == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (a.grad_x != nullptr) {
      with_team<T>(a.width, rows, [&](auto team, unsigned grid, int threads) {
        using Team = decltype(team);
        if (packable<T>(a.x, a.x_row) && packable<T>(a.grad, a.grad_row) && packable<T>(a.grad_x, a.width) &&
            packable<T>(a.weight, 0)) {
          norm_backward_x<T, true, layer, Team><<<grid, threads, 0, stream>>>(a, rows);
        } else {
          norm_backward_x<T, false, layer, Team><<<grid, threads, 0, stream>>>(a, rows);
        }
      });
    }
    if (a.partial_weight != nullptr || a.partial_bias != nullptr) {
      const dim3 blocks(blocks_for(a.width, kColumnThreads), blocks_for(rows, per_block));
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
    sum_blocks<T><<<blocks_for(width, 32), 32 * kSlices, 0, stream>>>(static_cast<const S*>(partial), blocks, width,
                                                                      static_cast<T*>(out));
  });
}

}  // namespace limbeck::kernels
