// The rotary embedding on CUDA: one thread block a position, threads over heads and packs of pairs.
#include "kernels/cuda/device_storage.cuh"
#include "kernels/rotary/rotary_cuda.h"
#include "kernels/rotary/rotary_formula.h"

namespace limbeck::kernels {
namespace {

template <int elements>
__device__ __forceinline__ void load_angles(const float* from, float (&angles)[elements]) {
  constexpr int kPack = elements < 4 ? elements : 4;
  for (int j = 0; j < elements; j += kPack) {
    const auto pack = *reinterpret_cast<const Pack<float, kPack>*>(from + j);
    for (int k = 0; k < kPack; ++k) angles[j + k] = pack.value[k];
  }
}

// Index: of an element within a position; the GPU divides 64-bit numbers in some hundred instructions.
template <class T, int elements, class Index>
__global__ void rotate(RotaryArguments a, MoreHeads more) {
  using S = typename DeviceCompute<T>::Type;
  using P = Pack<T, elements>;
  const int64_t batch = blockIdx.x / a.time, t = blockIdx.x % a.time;
  const float* cos = a.cos + batch * a.cos_batch + t * a.half;
  const float* sin = a.sin + batch * a.cos_batch + t * a.half;
  const T* x = static_cast<const T*>(a.x) + batch * a.x_batch + t * a.x_time;
  T* y = static_cast<T*>(a.y) + blockIdx.x * a.heads * a.width;
  const T* more_x = static_cast<const T*>(more.x) + batch * more.x_batch + t * more.x_time;
  T* more_y = static_cast<T*>(more.y) + blockIdx.x * more.heads * a.width;
  const auto x_of = [&](int64_t head) {
    return head < a.heads ? x + head * a.x_head : more_x + (head - a.heads) * more.x_head;
  };
  const auto y_of = [&](int64_t head) {
    return head < a.heads ? y + head * a.width : more_y + (head - a.heads) * a.width;
  };
  const Index heads = a.heads + more.heads, width = a.width, half = a.half, packs = half / elements,
              rest = width - 2 * half;
  for (Index index = threadIdx.x; index < heads * packs; index += blockDim.x) {
    const Index head = index / packs, i = index % packs * elements;
    const T* from = x_of(head) + i;
    T* to = y_of(head) + i;
    const P first = *reinterpret_cast<const P*>(from), second = *reinterpret_cast<const P*>(from + half);
    float cosines[elements], sines[elements];
    load_angles(cos + i, cosines);
    load_angles(sin + i, sines);
    P out_first, out_second;
    for (int j = 0; j < elements; ++j) {
      const S sine = a.inverse ? -sines[j] : sines[j];
      const auto pair = rotated<S>(widened(first.value[j]), widened(second.value[j]), cosines[j], sine);
      put(&out_first.value[j], pair.first);
      put(&out_second.value[j], pair.second);
    }
    *reinterpret_cast<P*>(to) = out_first;
    *reinterpret_cast<P*>(to + half) = out_second;
  }
  for (Index index = threadIdx.x; index < heads * rest; index += blockDim.x) {
    const Index head = index / rest, i = 2 * half + index % rest;
    y_of(head)[i] = x_of(head)[i];
  }
}

template <class T>
bool packable_heads(const RotaryArguments& a, const MoreHeads& more) {
  return packable<T>(more.x, more.x_batch) && packable<T>(more.x, more.x_time) && packable<T>(more.x, more.x_head) &&
         packable<T>(more.y, a.width) && packable<T>(a.x, a.x_batch) && packable<T>(a.x, a.x_time) &&
         packable<T>(a.x, a.x_head) && packable<T>(a.y, a.width) && a.half % kPackElements<T> == 0 &&
         packable<float>(a.cos, a.half) && packable<float>(a.sin, a.half);
}

}  // namespace

void launch_rotary(Storage storage, const RotaryArguments& a, const MoreHeads& more, int64_t positions,
                   cudaStream_t stream) {
  if (positions == 0) return;
  const auto grid = static_cast<unsigned>(positions);
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int kPack = kPackElements<T>;
    const int64_t of_position = (a.heads + more.heads) * a.width;
    const auto threads_for = [&](int elements) { return of_position > 512 * elements ? 256 : 64; };
    if (of_position > 0x7fff0000) {  // no model's; the loops add a block's threads to an index
      rotate<T, 1, int64_t><<<grid, threads_for(1), 0, stream>>>(a, more);
    } else if (packable_heads<T>(a, more)) {
      rotate<T, kPack, int><<<grid, threads_for(kPack), 0, stream>>>(a, more);
    } else {
      rotate<T, 1, int><<<grid, threads_for(1), 0, stream>>>(a, more);
    }
  });
}

}  // namespace limbeck::kernels
