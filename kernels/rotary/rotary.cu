// The rotary embedding on CUDA: one thread block a position, threads over heads and pairs.
#include "kernels/cuda/device_storage.cuh"
#include "kernels/rotary/rotary_cuda.h"
#include "kernels/rotary/rotary_formula.h"

namespace limbeck::kernels {
namespace {

template <class T>
__global__ void rotate(RotaryArguments a) {
  using S = typename DeviceCompute<T>::Type;
  const int64_t position = blockIdx.x, batch = position / a.time, t = position % a.time;
  const float* cos = a.cos + batch * a.cos_batch + t * a.half;
  const float* sin = a.sin + batch * a.cos_batch + t * a.half;
  const T* x = static_cast<const T*>(a.x) + batch * a.x_batch + t * a.x_time;
  T* y = static_cast<T*>(a.y) + position * a.heads * a.width;
  for (int64_t index = threadIdx.x; index < a.heads * a.half; index += blockDim.x) {
    const int64_t head = index / a.half, i = index % a.half;
    const T* from = x + head * a.x_head + i;
    T* to = y + head * a.width + i;
    const S angle_sin = a.inverse ? -sin[i] : sin[i];
    const auto pair = rotated<S>(widened(from[0]), widened(from[a.half]), cos[i], angle_sin);
    put(to, pair.first);
    put(to + a.half, pair.second);
  }
  const int64_t rest = a.width - 2 * a.half;
  for (int64_t index = threadIdx.x; index < a.heads * rest; index += blockDim.x) {
    const int64_t head = index / rest, i = 2 * a.half + index % rest;
    y[head * a.width + i] = x[head * a.x_head + i];
  }
}

}  // namespace

void launch_rotary(Storage storage, const RotaryArguments& args, int64_t positions, cudaStream_t stream) {
  if (positions == 0) return;
  with_device_type(storage, [&](auto tag) {
    const int threads = args.heads * args.width > 512 ? 256 : 64;
    rotate<typename decltype(tag)::Type><<<static_cast<unsigned>(positions), threads, 0, stream>>>(args);
  });
}

}  // namespace limbeck::kernels
