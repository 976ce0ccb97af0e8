// The optimizer's operators on CUDA; the formula is the CPU's (adamw_formula.h).
namespace limbeck::kernels {

// What adamw_formula.h asks of its value type. Declared before it: these are no class types, so lookup is by order.
__device__ __forceinline__ float square_root(float value) { return sqrtf(value); }
__device__ __forceinline__ double square_root(double value) { return sqrt(value); }

}  // namespace limbeck::kernels

#include "kernels/adamw/adamw_cuda.h"
#include "kernels/cuda/device_storage.cuh"

namespace limbeck::kernels {
namespace {

constexpr int kThreads = 256;

unsigned grid_for(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

__device__ __forceinline__ int64_t element() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

template <class S, class G, class P>
__global__ void __launch_bounds__(kThreads) step(AdamWArguments a, int64_t count) {
  const int64_t i = element();
  if (i >= count) return;
  const AdamWVectors<S> f(a.factors);
  S* weight = static_cast<S*>(a.weight) + i;
  S* first = static_cast<S*>(a.first) + i;
  S* second = static_cast<S*>(a.second) + i;
  S w = *weight, m = *first, v = *second;
  adamw_update(f, static_cast<S>(widened(static_cast<const G*>(a.gradient)[i])), w, m, v);
  *weight = w;
  *first = m;
  *second = v;
  if (a.narrow != nullptr) put(static_cast<P*>(a.narrow) + i, w);
}

template <class T>
__global__ void __launch_bounds__(kThreads) square_run(const T* x, int64_t count, double* totals) {
  using S = typename DeviceCompute<T>::Type;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSquareRun;
  const int64_t end = begin + kSquareRun < count ? begin + kSquareRun : count;
  S sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const S value = widened(x[i]);
    sum += value * value;
  }
  double total = block_sum(sum);
  if (!(total - total == 0)) {  // the same for all threads: too large for float32, or not finite
    double wide = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const double value = widened(x[i]);
      wide += value * value;
    }
    total = block_sum(wide);
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
}

template <class T>
__global__ void __launch_bounds__(kThreads) add(const T* x, typename DeviceCompute<T>::Type* sum, int64_t count) {
  const int64_t i = element();
  if (i < count) sum[i] += widened(x[i]);
}

}  // namespace

void launch_adamw_step(const AdamWArguments& a, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  with_device_type(a.gradient_storage, [&](auto tag) {
    using G = typename decltype(tag)::Type;
    using S = typename DeviceCompute<G>::Type;
    if (a.narrow_storage == Storage::kBFloat16) {
      step<S, G, __nv_bfloat16><<<grid_for(count), kThreads, 0, stream>>>(a, count);
    } else {
      step<S, G, __half><<<grid_for(count), kThreads, 0, stream>>>(a, count);
    }
  });
}

void launch_square_sums(Storage storage, const void* x, int64_t count, double* totals, cudaStream_t stream) {
  const int64_t runs = (count + kSquareRun - 1) / kSquareRun;
  if (runs == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    square_run<T><<<static_cast<unsigned>(runs), kThreads, 0, stream>>>(static_cast<const T*>(x), count, totals);
  });
}

void launch_accumulate(Storage storage, const void* x, void* sum, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    using S = typename DeviceCompute<T>::Type;
    add<T><<<grid_for(count), kThreads, 0, stream>>>(static_cast<const T*>(x), static_cast<S*>(sum), count);
  });
}

}  // namespace limbeck::kernels
