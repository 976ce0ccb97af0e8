// The resolvent on CUDA: its recurrences as scans along the rows (row_scan.cuh), and what both sides give position by
// position. All in one order: equal inputs give equal bits.
#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/resolvent/resolvent_cuda.h"
#include "kernels/resolvent/row_scan.cuh"

namespace limbeck::kernels {
namespace {

constexpr int kThreads = 256;

// The sums of gradients, beside the Green functions from their side.
template <class T>
struct SumRow {
  using Product = SumProduct;
  struct Of {
    DeviceTridiagonals m;
    DeviceSweep sweep;
  };
  const Of& of;
  int64_t row;
  const double* green;
  const double* source;

  __device__ __forceinline__ SumRow(const Of& all, int64_t which)
      : of(all),
        row(which),
        green(row_of(all.sweep.green, which, all.m.n)),
        source(row_of(all.sweep.source, which, all.m.n)) {}
  static __device__ __forceinline__ Product none() { return no_sum_step(); }
  __device__ __forceinline__ double p(int64_t i) const {
    return coupling<T>(of.m, row, of.sweep.from_right ? i + 1 : i);
  }
  __device__ __forceinline__ void extend_by(Product& product, int64_t i) const {
    const double here = p(i);
    extend(product, sum_factor(here, pair_at(green, i)), step(i, product.sum));
    if (here == 0.0) product.is_cut = 1;
  }
  __device__ __forceinline__ Complex<double> step(int64_t i, Complex<double> before) const {
    return sum_step<double>(pair_at(source, i), p(i), pair_at(green, i), before);
  }
  __device__ __forceinline__ void put(int64_t i, Complex<double> state) const {
    put_pair(of.sweep.states, row * of.m.n + i, state);
  }
};

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

template <class Body>
void with_device_float(Storage storage, Body body) {
  storage == Storage::kFloat64 ? body(StorageTag<double>{}) : body(StorageTag<float>{});
}

}  // namespace

void launch_resolvent_sweep(Storage storage, const DeviceTridiagonals& m, const DeviceSweep& sweep,
                            cudaStream_t stream) {
  with_device_float(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (sweep.green == nullptr) {
      const RowScan scan{m.rows, m.n, sweep.from_right, m.state, sweep.last, sweep.products, sweep.entries};
      launch_scan<GreenRow<T>>(scan, {m, sweep.from_right, sweep.states, static_cast<T*>(sweep.out)}, stream);
    } else {
      const RowScan scan{m.rows, m.n, sweep.from_right, nullptr, nullptr, sweep.products, sweep.entries};
      launch_scan<SumRow<T>>(scan, {m, sweep}, stream);
    }
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
