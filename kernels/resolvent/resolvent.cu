// The resolvent on CUDA, a row divided among all thread blocks: a thread a segment of 32 positions. Three launches a
// recurrence: what each segment makes of whatever comes into it (a product of 2x2 matrices), by a scan of a row's
// products what does come in, and the recurrences. All in one order: equal inputs give equal bits.
#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/resolvent/resolvent_cuda.h"
#include "kernels/resolvent/resolvent_plan.h"
#include "kernels/resolvent/resolvent_products.h"

namespace limbeck::kernels {
namespace {

static_assert(sizeof(GreenProduct) == kGreenProductNumbers * sizeof(double));
static_assert(sizeof(SumProduct) == kSumProductNumbers * sizeof(double));

constexpr int kSegmentThreads = 32;  // few a block: a single long row is to reach every multiprocessor
constexpr int kScanThreads = 256;
constexpr int kThreads = 256;

// ---- the two recurrences of a row -----------------------------------------------------------------------------------

template <class T>
struct GreenRow {
  using Product = GreenProduct;
  const DeviceTridiagonals& m;
  int64_t row;
  Complex<double> z;

  __device__ __forceinline__ GreenRow(const DeviceTridiagonals& of, const DeviceSweep&, int64_t which)
      : m(of), row(which), z(of.template point<T>(which)) {}
  static __device__ __forceinline__ Product none() { return no_green_step(); }
  __device__ __forceinline__ void extend_by(Product& product, int64_t i, double p) const {
    extend(product, diagonal_element<T>(m, row, i) - z.re, p, z.im);
  }
  __device__ __forceinline__ Complex<double> step(int64_t i, double p, Complex<double> before) const {
    return green_step<double>(diagonal_element<T>(m, row, i) - z.re, p, z.im, before);
  }
};

template <class T>
struct SumRow {
  using Product = SumProduct;
  const double* green;
  const double* source;

  __device__ __forceinline__ SumRow(const DeviceTridiagonals& m, const DeviceSweep& sweep, int64_t row)
      : green(row_of(sweep.green, row, m.n)), source(row_of(sweep.source, row, m.n)) {}
  static __device__ __forceinline__ Product none() { return no_sum_step(); }
  __device__ __forceinline__ void extend_by(Product& product, int64_t i, double p) const {
    extend(product, pair_at(source, i), p, pair_at(green, i));
  }
  __device__ __forceinline__ Complex<double> step(int64_t i, double p, Complex<double> before) const {
    return sum_step<double>(pair_at(source, i), p, pair_at(green, i), before);
  }
};

// What comes into a row.
__device__ __forceinline__ Complex<double> initial_state(const double* state, int64_t row) {
  return state != nullptr ? pair_at(state, row) : Complex<double>{0.0, 0.0};
}

// body(i, p) along segment `k` of a row, in the order of the sweep.
template <class T, class Body>
__device__ __forceinline__ void along_segment(const DeviceTridiagonals& m, bool from_right, int64_t row, int64_t k,
                                              Body body) {
  const int64_t begin = k * kDeviceSegment, limit = begin + kDeviceSegment, end = limit < m.n ? limit : m.n;
  for (int64_t along = begin; along < end; ++along) {
    const int64_t i = from_right ? m.n - 1 - along : along;
    body(i, coupling<T>(m, row, from_right ? i + 1 : i));
  }
}

// ---- the three launches of a recurrence -----------------------------------------------------------------------------

template <class T, class Row>
__global__ void segment_products(DeviceTridiagonals m, DeviceSweep sweep, int64_t per_row) {
  const int64_t segment = thread_number();
  const int64_t row = segment / per_row, k = segment % per_row;
  if (row >= m.rows || k == per_row - 1) return;  // what the last one makes goes nowhere
  const Row recurrence(m, sweep, row);
  typename Row::Product product = Row::none();
  along_segment<T>(m, sweep.from_right, row, k, [&](int64_t i, double p) { recurrence.extend_by(product, i, p); });
  reinterpret_cast<typename Row::Product*>(sweep.products)[segment] = product;
}

// A block a row: each thread joins the products of some neighbouring segments, the threads' are joined in log2 rounds,
// and each goes along its segments again, with what comes in.
template <class Row>
__global__ void scan_segments(DeviceSweep sweep, const double* initial, int64_t per_row) {
  using Product = typename Row::Product;
  __shared__ Product joint[kScanThreads];
  const int64_t row = blockIdx.x, first = row * per_row, thread = threadIdx.x;
  const Product* products = reinterpret_cast<const Product*>(sweep.products) + first;
  const int64_t some = rounded_up_quotient(per_row, blockDim.x), begin = thread * some;
  const int64_t end = begin + some < per_row ? begin + some : per_row;
  const int64_t known = end < per_row ? end : per_row - 1;
  Product own = Row::none();
  for (int64_t k = begin; k < known; ++k) own = joined(own, products[k]);
  joint[thread] = own;
  __syncthreads();
  for (unsigned before = 1; before < blockDim.x; before *= 2) {
    if (thread >= before) own = joined(joint[thread - before], own);
    __syncthreads();
    joint[thread] = own;
    __syncthreads();
  }
  Complex<double> state = initial_state(initial, row);
  if (thread > 0) state = applied(joint[thread - 1], state);
  for (int64_t k = begin; k < end; ++k) {
    put_pair(sweep.entries, first + k, state);
    if (k + 1 < end) state = applied(products[k], state);
  }
}

template <class T, class Row>
__global__ void recurrences(DeviceTridiagonals m, DeviceSweep sweep, const double* initial, int64_t per_row) {
  const int64_t segment = thread_number();
  const int64_t row = segment / per_row, k = segment % per_row;
  if (row >= m.rows) return;
  const Row recurrence(m, sweep, row);
  Complex<double> state = per_row == 1 ? initial_state(initial, row) : pair_at(sweep.entries, segment);
  along_segment<T>(m, sweep.from_right, row, k, [&](int64_t i, double p) {
    state = recurrence.step(i, p, state);
    if (sweep.states != nullptr) put_pair(sweep.states, row * m.n + i, state);
    if (sweep.out != nullptr) put_pair(static_cast<T*>(sweep.out), row * m.n + i, state);
  });
  if (sweep.last != nullptr && k == per_row - 1) put_pair(sweep.last, row, state);
}

// ---- position by position -------------------------------------------------------------------------------------------

template <class T>
__global__ void diagonal(DeviceTridiagonals m, const double* left, const double* right, T* out, unsigned per_row) {
  const int64_t row = blockIdx.x / per_row, i = static_cast<int64_t>(blockIdx.x % per_row) * blockDim.x + threadIdx.x;
  if (i >= m.n) return;
  put_pair(out, row * m.n + i, diagonal_at<T>(m, row_of(left, row, m.n), row_of(right, row, m.n), row, i));
}

template <class T>
__global__ void gradient_source(DeviceTridiagonals m, ResolventGradients g, unsigned per_row) {
  const int64_t row = blockIdx.x / per_row, i = static_cast<int64_t>(blockIdx.x % per_row) * blockDim.x + threadIdx.x;
  if (i < m.n) put_gradient_source<T>(m, g, row, i);
}

// A block a run of kGradientRun positions.
template <class T>
__global__ void gradients(DeviceTridiagonals m, ResolventGradients g, unsigned runs) {
  const int64_t row = blockIdx.x / runs, begin = static_cast<int64_t>(blockIdx.x % runs) * kGradientRun;
  const int64_t end = begin + kGradientRun < m.n ? begin + kGradientRun : m.n;
  Complex<double> sum{0.0, 0.0};
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) sum = sum_of(sum, put_gradients<T>(m, g, row, i));
  sum.re = block_sum(sum.re);
  sum.im = block_sum(sum.im);
  if (threadIdx.x == 0) put_pair(g.partial_z, blockIdx.x, {sum.re, -sum.im});
}

// A thread a row: its runs in order.
template <class T>
__global__ void add_runs_of_rows(const double* partial_z, T* grad_z, int64_t rows, int64_t runs) {
  const int64_t row = thread_number();
  if (row >= rows) return;
  Complex<double> sum{0.0, 0.0};
  for (int64_t run = 0; run < runs; ++run) sum = sum_of(sum, pair_at(partial_z, row * runs + run));
  put_pair(grad_z, row, sum);
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <class T, class Row>
void launch_sweep(const DeviceTridiagonals& m, const DeviceSweep& sweep, cudaStream_t stream) {
  const int64_t per_row = device_segments(m.n);
  const double* initial = sweep.green == nullptr ? m.state : nullptr;
  const unsigned grid = blocks_for(m.rows * per_row, kSegmentThreads);
  if (per_row > 1) {
    int threads = 32;
    while (threads < kScanThreads && threads < per_row) threads *= 2;
    segment_products<T, Row><<<grid, kSegmentThreads, 0, stream>>>(m, sweep, per_row);
    scan_segments<Row><<<static_cast<unsigned>(m.rows), threads, 0, stream>>>(sweep, initial, per_row);
  }
  recurrences<T, Row><<<grid, kSegmentThreads, 0, stream>>>(m, sweep, initial, per_row);
}

template <class Body>
void with_device_float(Storage storage, Body body) {
  storage == Storage::kFloat64 ? body(StorageTag<double>{}) : body(StorageTag<float>{});
}

}  // namespace

void launch_resolvent_sweep(Storage storage, const DeviceTridiagonals& m, const DeviceSweep& sweep,
                            cudaStream_t stream) {
  with_device_float(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    sweep.green == nullptr ? launch_sweep<T, GreenRow<T>>(m, sweep, stream)
                           : launch_sweep<T, SumRow<T>>(m, sweep, stream);
  });
}

void launch_resolvent_diagonal(Storage storage, const DeviceTridiagonals& m, const double* left, const double* right,
                               void* out, cudaStream_t stream) {
  const unsigned per_row = blocks_for(m.n, kThreads), grid = static_cast<unsigned>(m.rows * per_row);
  with_device_float(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    diagonal<T><<<grid, kThreads, 0, stream>>>(m, left, right, static_cast<T*>(out), per_row);
  });
}

void launch_resolvent_gradient_source(Storage storage, const DeviceTridiagonals& m, const ResolventGradients& g,
                                      cudaStream_t stream) {
  const unsigned per_row = blocks_for(m.n, kThreads), grid = static_cast<unsigned>(m.rows * per_row);
  with_device_float(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gradient_source<T><<<grid, kThreads, 0, stream>>>(m, g, per_row);
  });
}

void launch_resolvent_gradients(Storage storage, const DeviceTridiagonals& m, const ResolventGradients& g, void* grad_z,
                                cudaStream_t stream) {
  const unsigned runs = blocks_for(m.n, kGradientRun), grid = static_cast<unsigned>(m.rows * runs);
  const unsigned some = blocks_for(m.rows, kThreads);
  with_device_float(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    gradients<T><<<grid, kThreads, 0, stream>>>(m, g, runs);
    add_runs_of_rows<T><<<some, kThreads, 0, stream>>>(g.partial_z, static_cast<T*>(grad_z), m.rows, runs);
  });
}

}  // namespace limbeck::kernels
