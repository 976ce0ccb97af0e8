// The optimizer's operators on CUDA; the formula is the CPU's (adamw_formula.h).
namespace limbeck::kernels {

// What adamw_formula.h asks of its value type. Declared before it: these are no class types, so lookup is by order.
__device__ __forceinline__ float square_root(float value) { return sqrtf(value); }
__device__ __forceinline__ double square_root(double value) { return sqrt(value); }

}  // namespace limbeck::kernels

#include "kernels/adamw/adamw_cuda.h"
#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"

namespace limbeck::kernels {
namespace {

constexpr int kThreads = 256;

// Tensors of one launch, in its arguments (4 KB), and which blocks are whose: block b is of the last tensor whose
// first_block is not above b. Each block takes kChunk elements.
constexpr int kTensors = 64;
constexpr int64_t kChunk = 4096;
constexpr unsigned kMostBlocks = 0x7fffffff;  // of a grid
struct StepBatch {
  AdamWFactors factors;
  AdamWTensor tensors[kTensors];
  unsigned first_block[kTensors];
  int count;
};
static_assert(sizeof(StepBatch) <= 4096);

// The same for sums of squares: a block takes a run and writes its total.
struct SquaresBatch {
  SquaredTensor tensors[kTensors];
  unsigned first_block[kTensors];
  int count;
};
static_assert(sizeof(SquaresBatch) <= 4096);

template <class Batch>
__device__ __forceinline__ int tensor_of_block(const Batch& batch) {
  int low = 0, high = batch.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.first_block[middle] <= blockIdx.x ? low : high) = middle;
  }
  return low;
}

// `elements` from the i-th on, each array in one access.
template <class S, class G, class P, int elements>
__device__ __forceinline__ void step_at(const AdamWVectors<S>& f, const AdamWTensor& t, int64_t i) {
  using Wide = Pack<S, elements>;
  Wide* weight = reinterpret_cast<Wide*>(static_cast<S*>(t.weight) + i);
  Wide* first = reinterpret_cast<Wide*>(static_cast<S*>(t.first) + i);
  Wide* second = reinterpret_cast<Wide*>(static_cast<S*>(t.second) + i);
  const auto gradient = *reinterpret_cast<const Pack<G, elements>*>(static_cast<const G*>(t.gradient) + i);
  Wide w = *weight, m = *first, v = *second;
  Pack<P, elements> narrow;
  for (int j = 0; j < elements; ++j) {
    adamw_update(f, static_cast<S>(widened(gradient.value[j])), w.value[j], m.value[j], v.value[j]);
    put(&narrow.value[j], w.value[j]);
  }
  *weight = w;
  *first = m;
  *second = v;
  if (t.narrow != nullptr) *reinterpret_cast<Pack<P, elements>*>(static_cast<P*>(t.narrow) + i) = narrow;
}

template <class S, class G, class P>
__global__ void __launch_bounds__(kThreads) step(const __grid_constant__ StepBatch batch) {
  constexpr int kPack = kPackElements<S>;
  const int mine = tensor_of_block(batch);
  const AdamWTensor& t = batch.tensors[mine];
  const AdamWVectors<S> f(batch.factors);
  const int64_t begin = (blockIdx.x - batch.first_block[mine]) * kChunk;
  const int64_t end = begin + kChunk < t.count ? begin + kChunk : t.count;
  const bool whole = (reinterpret_cast<uintptr_t>(t.gradient) | reinterpret_cast<uintptr_t>(t.weight) |
                      reinterpret_cast<uintptr_t>(t.first) | reinterpret_cast<uintptr_t>(t.second) |
                      reinterpret_cast<uintptr_t>(t.narrow)) %
                         16 ==
                     0;
  const int64_t packed_end = whole ? end / kPack * kPack : begin;
  for (int64_t i = begin + threadIdx.x * kPack; i < packed_end; i += kThreads * kPack) step_at<S, G, P, kPack>(f, t, i);
  for (int64_t i = packed_end + threadIdx.x; i < end; i += kThreads) step_at<S, G, P, 1>(f, t, i);
}

template <class T>
__global__ void __launch_bounds__(kThreads) square_run(const __grid_constant__ SquaresBatch batch, double* totals) {
  using S = typename DeviceCompute<T>::Type;
  const int mine = tensor_of_block(batch);
  const T* x = static_cast<const T*>(batch.tensors[mine].x);
  const int64_t count = batch.tensors[mine].count;
  const int64_t begin = static_cast<int64_t>(blockIdx.x - batch.first_block[mine]) * kSquareRun;
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
  const int64_t i = thread_number();
  if (i < count) sum[i] += widened(x[i]);
}

void launch_batch(const AdamWArguments& a, const StepBatch& batch, unsigned blocks, cudaStream_t stream) {
  with_device_type(a.gradient_storage, [&](auto tag) {
    using G = typename decltype(tag)::Type;
    using S = typename DeviceCompute<G>::Type;
    if (a.narrow_storage == Storage::kBFloat16) {
      step<S, G, __nv_bfloat16><<<blocks, kThreads, 0, stream>>>(batch);
    } else {
      step<S, G, __half><<<blocks, kThreads, 0, stream>>>(batch);
    }
  });
}

// Divides tensors among launches: launched(batch, blocks) for each, a block taking `chunk` elements.
template <class Batch, class Tensor, class Launched>
void in_batches(Batch batch, const Tensor* tensors, size_t count, int64_t chunk, Launched launched) {
  unsigned blocks = 0;
  for (size_t i = 0; i < count; ++i) {
    if (tensors[i].count == 0) continue;
    const unsigned of_this = blocks_for(tensors[i].count, chunk);
    if (batch.count == kTensors || blocks > kMostBlocks - of_this) {
      launched(batch, blocks);
      batch.count = 0;
      blocks = 0;
    }
    batch.tensors[batch.count] = tensors[i];
    batch.first_block[batch.count++] = blocks;
    blocks += of_this;
  }
  if (blocks > 0) launched(batch, blocks);
}

}  // namespace

void launch_adamw_step(const AdamWArguments& a, const AdamWTensor* tensors, size_t count, cudaStream_t stream) {
  StepBatch first{};
  first.factors = a.factors;
  in_batches(first, tensors, count, kChunk,
             [&](const StepBatch& batch, unsigned blocks) { launch_batch(a, batch, blocks, stream); });
}

void launch_square_sums(Storage storage, const SquaredTensor* tensors, size_t count, double* totals,
                        cudaStream_t stream) {
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    in_batches(SquaresBatch{}, tensors, count, kSquareRun, [&](const SquaresBatch& batch, unsigned blocks) {
      square_run<T><<<blocks, kThreads, 0, stream>>>(batch, totals);
      totals += blocks;
    });
  });
}

void launch_accumulate(Storage storage, const void* x, void* sum, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    using S = typename DeviceCompute<T>::Type;
    add<T><<<blocks_for(count, kThreads), kThreads, 0, stream>>>(static_cast<const T*>(x), static_cast<S*>(sum), count);
  });
}

}  // namespace limbeck::kernels
