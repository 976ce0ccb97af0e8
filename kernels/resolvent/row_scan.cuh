// A recurrence along each of many rows on CUDA, a row divided among all thread blocks: a thread a segment of 32
// positions. Three launches: what each segment makes of whatever comes into it (a product of resolvent_products.h), by
// a scan of a row's products what does come in, and the recurrence. All in one order: equal inputs give equal bits.
#pragma once
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/resolvent/resolvent_cuda.h"
#include "kernels/resolvent/resolvent_plan.h"
#include "kernels/resolvent/resolvent_products.h"

namespace limbeck::kernels {

static_assert(sizeof(GreenProduct) == kGreenProductNumbers * sizeof(double));
static_assert(sizeof(SumProduct) == kSumProductNumbers * sizeof(double));

constexpr int kSegmentThreads = 32;  // few a block: a single long row is to reach every multiprocessor
constexpr int kScanThreads = 256;

struct RowScan {
  int64_t rows, n;
  bool from_right;
  const double* initial;  // [rows, 2], what comes into a row, or null: 0
  double* last;           // [rows, 2], the state behind each row, or null
  double* products;       // a product and an entry a segment, unless a row is one
  double* entries;
};

__device__ __forceinline__ Complex<double> initial_state(const RowScan& scan, int64_t row) {
  return scan.initial != nullptr ? pair_at(scan.initial, row) : Complex<double>{0.0, 0.0};
}

// body(i) along segment `k` of a row, in the order of the scan.
template <class Body>
__device__ __forceinline__ void along_segment(const RowScan& scan, int64_t k, Body body) {
  const int64_t begin = k * kDeviceSegment, limit = begin + kDeviceSegment, end = limit < scan.n ? limit : scan.n;
#pragma unroll 1  // two positions at once would take more than 64 registers
  for (int64_t along = begin; along < end; ++along) body(scan.from_right ? scan.n - 1 - along : along);
}

// Row(of, row) is the recurrence of a row: Product and none(), extend_by(product, i) for one position more, step(i,
// before), and put(i, state) for what is kept of it.
template <class Row>
__global__ void segment_products(RowScan scan, typename Row::Of of, int64_t per_row) {
  const int64_t segment = thread_number(), row = segment / per_row, k = segment % per_row;
  if (row >= scan.rows || k == per_row - 1) return;  // what the last one makes goes nowhere
  const Row recurrence(of, row);
  typename Row::Product product = Row::none();
  along_segment(scan, k, [&](int64_t i) { recurrence.extend_by(product, i); });
  reinterpret_cast<typename Row::Product*>(scan.products)[segment] = product;
}

// A block a row: each thread joins the products of some neighbouring segments, the threads' are joined in log2 rounds,
// and each goes along its segments again, with what comes in.
template <class Row>
__global__ void scan_segments(RowScan scan, int64_t per_row) {
  using Product = typename Row::Product;
  __shared__ Product joint[kScanThreads];
  const int64_t row = blockIdx.x, first = row * per_row, thread = threadIdx.x;
  const Product* products = reinterpret_cast<const Product*>(scan.products) + first;
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
  Complex<double> state = initial_state(scan, row);
  if (thread > 0) state = applied(joint[thread - 1], state);
  for (int64_t k = begin; k < end; ++k) {
    put_pair(scan.entries, first + k, state);
    if (k + 1 < end) state = applied(products[k], state);
  }
}

template <class Row>
__global__ void recurrences(RowScan scan, typename Row::Of of, int64_t per_row) {
  const int64_t segment = thread_number(), row = segment / per_row, k = segment % per_row;
  if (row >= scan.rows) return;
  const Row recurrence(of, row);
  Complex<double> state = per_row == 1 ? initial_state(scan, row) : pair_at(scan.entries, segment);
  along_segment(scan, k, [&](int64_t i) {
    state = recurrence.step(i, state);
    recurrence.put(i, state);
  });
  if (scan.last != nullptr && k == per_row - 1) put_pair(scan.last, row, state);
}

template <class Row>
void launch_scan(const RowScan& scan, const typename Row::Of& of, cudaStream_t stream) {
  const int64_t per_row = device_segments(scan.n);
  const unsigned grid = blocks_for(scan.rows * per_row, kSegmentThreads);
  if (per_row > 1) {
    int threads = 32;
    while (threads < kScanThreads && threads < per_row) threads *= 2;
    segment_products<Row><<<grid, kSegmentThreads, 0, stream>>>(scan, of, per_row);
    scan_segments<Row><<<static_cast<unsigned>(scan.rows), threads, 0, stream>>>(scan, per_row);
  }
  recurrences<Row><<<grid, kSegmentThreads, 0, stream>>>(scan, of, per_row);
}

// Green functions from one side, into `states` and `out`.
template <class T>
struct GreenRow {
  using Product = GreenProduct;
  struct Of {
    DeviceTridiagonals m;
    bool from_right;
    double* states;  // [rows, n, 2], or null
    T* out;          // the states in the storage, or null
  };
  const Of& of;
  int64_t row;
  Complex<double> z;

  __device__ __forceinline__ GreenRow(const Of& all, int64_t which)
      : of(all), row(which), z(all.m.template point<T>(which)) {}
  static __device__ __forceinline__ Product none() { return no_green_step(); }
  __device__ __forceinline__ double real(int64_t i) const { return diagonal_element<T>(of.m, row, i) - z.re; }
  __device__ __forceinline__ double p(int64_t i) const { return coupling<T>(of.m, row, of.from_right ? i + 1 : i); }
  __device__ __forceinline__ void extend_by(Product& product, int64_t i) const {
    const double taken = p(i);
    extend(product, real(i), taken, z.im);
  }
  __device__ __forceinline__ Complex<double> step(int64_t i, Complex<double> before) const {
    return green_step<double>(real(i), p(i), z.im, before);
  }
  __device__ __forceinline__ void put(int64_t i, Complex<double> state) const {
    if (of.states != nullptr) put_pair(of.states, row * of.m.n + i, state);
    if (of.out != nullptr) put_pair(of.out, row * of.m.n + i, state);
  }
};

}  // namespace limbeck::kernels
