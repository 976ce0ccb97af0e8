// Sampling on CUDA without sorting: every pass has each row's logits divided among blocks, and the last block of a row
// to end does the row's next decision, so that nothing returns to the host and nothing waits.
//
// The order of sampling is that of depths (sampling_formula.h), which are not negative: as bits they are in the same
// order. A place in the order is found from the highest bits to the lowest ones: count and mass of the depths that have
// each value of the next bits, then in which of these the place is. top_k is a place by count; top_p and the draw are
// places by mass. Masses are whole numbers, so that their sums are the same in every order: the same bits always.
#include "kernels/sampling/sampling_cuda.h"

#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/sampling/sampling_formula.h"

namespace limbeck::kernels {
namespace {

using Whole = unsigned long long;  // what CUDA's atomics take
__extension__ typedef unsigned __int128 Mass;

constexpr int kThreads = 256;
constexpr int kChunk = 2048;          // logits of a block
constexpr int kBins = kSamplingBins;  // of a pass
static_assert(kChunk == kBins);
static_assert(kMostSampled / kChunk < kBins);

// The 63 bits of a depth, 11 or 10 a pass.
constexpr int kPasses = 6;
__device__ __forceinline__ int shift_of(int pass) { return pass < 3 ? 52 - 11 * pass : 50 - 10 * pass; }
__device__ __forceinline__ int width_of(int pass) { return pass < 3 ? 11 : 10; }

// A mass of 1 is 2^62, in three parts whose sums over a block have room in 32 bits.
constexpr double kUnit = 4611686018427387904.0;
constexpr int kPartBits = 21;
constexpr int kLowBits = 2 * kPartBits;  // of what a row sums as its low part

// Of some logits: how many, and the sum of their masses.
struct Tally {
  Whole count, low, high;
};
__device__ __forceinline__ Tally operator+(const Tally& a, const Tally& b) {
  return {a.count + b.count, a.low + b.low, a.high + b.high};
}
__device__ __forceinline__ Mass mass_of(const Tally& t) {
  return (static_cast<Mass>(t.high) << kLowBits) + static_cast<Mass>(t.low);
}

enum class Place : int { kTopK, kTopP, kDraw, kNone };

// What is known of a row between passes.
struct RowState {
  Whole greatest;  // in_order() of it
  unsigned broken, arrived;
  Whole prefix;  // of the place's depth, as far as it is found
  Tally above;   // of all that come before that prefix
  Mass kept;     // of the candidates
  Whole rank;    // of the drawn among its equals
};

// Of one row, one after the other in the workspace.
struct RowWork {
  RowState state;
  Tally coarse[kBins];  // of the first bits: the same for every place
  Tally fine[kBins];    // of the others; at the end, by block, how many are equal to the drawn
};
static_assert(sizeof(RowWork) == sampling_workspace_bytes(1), "what a plan says is what a row takes");

__device__ __forceinline__ Whole bits_of(double value) {
  Whole bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
__device__ __forceinline__ double double_of(Whole bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
constexpr Whole kSign = 1ull << 63;
__device__ __forceinline__ Whole in_order(double value) {
  const Whole bits = bits_of(value + 0.0);  // -0 is 0
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}
__device__ __forceinline__ double out_of_order(Whole key) {
  return double_of((key & kSign) != 0 ? key & ~kSign : ~key);
}

template <class T>
__device__ __forceinline__ double logit_at(const SamplingArguments& a, int64_t i) {
  const double logit = widened(static_cast<const T*>(a.logits)[blockIdx.y * a.row_stride + i]);
  return a.allow_nonfinite ? tamed(logit, a.largest) : logit;
}

// Below 2^63; greedily, whose depth is 0 is what is equal to the greatest.
template <class T>
__device__ __forceinline__ Whole depth_at(const SamplingArguments& a, double greatest, int64_t i) {
  return bits_of(depth_of(greatest, logit_at<T>(a, i), a.temperature == 0 ? 1.0 : a.temperature)) & ~kSign;
}

__device__ __forceinline__ Whole mass_at(Whole depth) {
  return static_cast<Whole>(rint(exp(-double_of(depth)) * kUnit));
}

// True in all threads of the last of a row's blocks to come here: what the others wrote before is there to be read.
__device__ __forceinline__ bool is_last(RowState& state) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&state.arrived, 1u) == gridDim.x - 1;
    if (last) state.arrived = 0;
  }
  __syncthreads();
  const bool mine = last;
  __threadfence();
  return mine;
}

__device__ __forceinline__ Tally read(const Tally& from) {
  const volatile Tally& there = from;  // other blocks wrote it
  return {there.count, there.low, there.high};
}

__device__ __forceinline__ Tally from_lane(const Tally& own, int lane) {
  return {__shfl_sync(0xffffffffu, own.count, lane), __shfl_sync(0xffffffffu, own.low, lane),
          __shfl_sync(0xffffffffu, own.high, lane)};
}

// The sum of what the threads before this one have; `total` is of all.
__device__ __forceinline__ Tally before_this(const Tally& own, Tally& total) {
  __shared__ Tally warps[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Tally sum = own;
  for (int distance = 1; distance < 32; distance *= 2) {
    const Tally other = from_lane(sum, lane >= distance ? lane - distance : lane);
    if (lane >= distance) sum = sum + other;
  }
  __syncthreads();  // sums of an earlier call may still be read
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  Tally before{0, 0, 0};
  total = {0, 0, 0};
  for (int i = 0; i < kThreads / 32; ++i) {
    if (i == warp) before = total;
    total = total + warps[i];
  }
  return {before.count + sum.count - own.count, before.low + sum.low - own.low, before.high + sum.high - own.high};
}

__device__ __forceinline__ Mass share_of(double share, Mass of) {
  constexpr double kHigh = 18446744073709551616.0;
  const double wanted = ceil(share * (static_cast<double>(static_cast<Whole>(of >> 64)) * kHigh +
                                      static_cast<double>(static_cast<Whole>(of))));
  const double high = floor(wanted / kHigh);
  const Mass mass = (static_cast<Mass>(static_cast<Whole>(high)) << 64) + static_cast<Whole>(wanted - high * kHigh);
  return mass == 0 ? 1 : mass > of ? of : mass;
}

// The count, or the mass, that the place's own makes full.
__device__ __forceinline__ Mass wanted_at(Place place, const SamplingArguments& a, Mass kept) {
  if (place == Place::kTopK) return static_cast<Mass>(a.top_k);
  if (place == Place::kTopP) return share_of(a.top_p, kept);
  const Whole twice = 2 * static_cast<Whole>(drawn_bits(a.seed, blockIdx.y, a.step)) + 1;  // of 2^33
  return ((twice * kept) >> 33) + 1;
}

// How many of equal masses make `wanted` full.
__device__ __forceinline__ Whole fewest(Whole mass, Mass wanted) {
  Whole low = 1, high = kMostSampled;
  while (low < high) {
    const Whole middle = (low + high) / 2;
    if (static_cast<Mass>(mass) * middle >= wanted) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// All bits of the place's depth are known: what follows from it.
__device__ __forceinline__ void end_place(Place place, RowState& state, Mass wanted) {
  const Whole mass = mass_at(state.prefix);
  const Mass above = mass_of(state.above);
  const Whole taken =
      place == Place::kTopK ? static_cast<Whole>(wanted) - state.above.count : fewest(mass, wanted - above);
  if (place == Place::kDraw) {
    state.rank = taken - 1;
  } else {
    state.kept = above + static_cast<Mass>(mass) * taken;
    state.prefix = 0;
    state.above = {0, 0, 0};
  }
}

// Finds in which bin the place is.
__device__ __forceinline__ void pick(Place place, int pass, const SamplingArguments& a, RowState& state, Tally* bins) {
  const int of_thread = kBins / blockDim.x;  // no constant: unrolled, it takes too many registers
  Tally* const mine = bins + threadIdx.x * of_thread;
  Tally own{0, 0, 0}, total;
  for (int i = 0; i < of_thread; ++i) own = own + read(mine[i]);
  Tally before = before_this(own, total) + state.above;
  if (state.kept == 0) {  // before the first place, all are candidates
    __syncthreads();
    if (threadIdx.x == 0) state.kept = mass_of(total);
    __syncthreads();
  }
  const bool by_count = place == Place::kTopK;
  const auto full = [by_count](const Tally& t) { return by_count ? static_cast<Mass>(t.count) : mass_of(t); };
  const Mass wanted = wanted_at(place, a, state.kept);
  __syncthreads();  // all have read the state
  if (full(before) < wanted && full(before + own) >= wanted) {
    int bin = 0;
    for (Tally next = before + read(mine[0]); full(next) < wanted; next = next + read(mine[++bin])) before = next;
    state.prefix |= static_cast<Whole>(threadIdx.x * of_thread + bin) << shift_of(pass);
    state.above = before;
    if (pass == kPasses - 1) end_place(place, state, wanted);
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads) measure(SamplingArguments a, RowWork* work) {
  RowState& state = work[blockIdx.y].state;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t end = begin + kChunk < a.vocabulary ? begin + kChunk : a.vocabulary;
  Whole greatest = 0;
  unsigned broken = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const double logit = logit_at<T>(a, i);
    const Whole key = in_order(logit);
    if (!is_finite(logit)) {
      broken = 1;
    } else if (key > greatest) {
      greatest = key;
    }
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const Whole other = __shfl_xor_sync(0xffffffffu, greatest, offset);
    broken |= __shfl_xor_sync(0xffffffffu, broken, offset);
    if (other > greatest) greatest = other;
  }
  if (threadIdx.x % 32 != 0) return;
  if (broken != 0) atomicMax(&state.broken, 1u);
  atomicMax(&state.greatest, greatest);
}

// Counts the next bits of all depths that begin as the place's does; then one block picks among them. Of the last pass
// of a place, it goes on with the `next` one.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)  // 64 registers
    descend(SamplingArguments a, RowWork* work, int pass, Place place, Place next) {
  __shared__ unsigned counts[kBins], lows[kBins], middles[kBins], highs[kBins];
  RowState& state = work[blockIdx.y].state;
  if (state.broken != 0) return;
  const int shift = shift_of(pass), known = shift + width_of(pass);
  const Whole prefix = state.prefix >> known;
  const double greatest = out_of_order(state.greatest);
  for (int i = threadIdx.x; i < kBins; i += kThreads) counts[i] = lows[i] = middles[i] = highs[i] = 0;
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t end = begin + kChunk < a.vocabulary ? begin + kChunk : a.vocabulary;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const Whole depth = depth_at<T>(a, greatest, i);
    if (depth >> known != prefix) continue;
    const auto bin = static_cast<unsigned>(depth >> shift) % (1u << width_of(pass));
    const Whole mass = mass_at(depth);
    constexpr Whole kPart = (1ull << kPartBits) - 1;
    atomicAdd(&counts[bin], 1u);
    atomicAdd(&lows[bin], static_cast<unsigned>(mass & kPart));
    atomicAdd(&middles[bin], static_cast<unsigned>(mass >> kPartBits & kPart));
    atomicAdd(&highs[bin], static_cast<unsigned>(mass >> kLowBits));
  }
  __syncthreads();
  Tally* bins = pass == 0 ? work[blockIdx.y].coarse : work[blockIdx.y].fine;
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if (counts[i] == 0) continue;
    atomicAdd(&bins[i].count, static_cast<Whole>(counts[i]));
    atomicAdd(&bins[i].low, (static_cast<Whole>(middles[i]) << kPartBits) + lows[i]);
    atomicAdd(&bins[i].high, static_cast<Whole>(highs[i]));
  }
  if (!is_last(state)) return;
  bool more = true;
  while (more) {
    pick(place, pass, a, state, bins);
    if (pass != 0) {
      for (int i = threadIdx.x; i < kBins; i += kThreads) bins[i] = {0, 0, 0};
    }
    more = pass == kPasses - 1 && next != Place::kNone;
    place = next, pass = 0, bins = work[blockIdx.y].coarse;
  }
}

// The id of the logit of the found depth that has the found rank among its equals.
template <class T>
__global__ void __launch_bounds__(kThreads) name_id(SamplingArguments a, RowWork* work) {
  RowState& state = work[blockIdx.y].state;
  Tally* const of_block = work[blockIdx.y].fine;
  if (state.broken != 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) a.ids[blockIdx.y] = -1;
    return;
  }
  const double greatest = out_of_order(state.greatest);
  const Whole depth = state.prefix;
  int64_t begin = static_cast<int64_t>(blockIdx.x) * kChunk;
  int64_t end = begin + kChunk < a.vocabulary ? begin + kChunk : a.vocabulary;
  Tally own{0, 0, 0}, total;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) own.count += depth_at<T>(a, greatest, i) == depth;
  before_this(own, total);
  if (threadIdx.x == 0) of_block[blockIdx.x] = total;
  if (!is_last(state)) return;

  __shared__ int64_t chunk;
  __shared__ Whole rank;
  own = {0, 0, 0};
  const int of_thread = kBins / blockDim.x;
  const Tally* const mine = of_block + threadIdx.x * of_thread;
  for (int i = 0; i < of_thread; ++i) own.count += read(mine[i]).count;
  Whole before = before_this(own, total).count;
  const Whole wanted = state.rank;
  if (before <= wanted && wanted < before + own.count) {
    int block = 0;
    for (Whole n = read(mine[0]).count; wanted >= before + n; n = read(mine[++block]).count) before += n;
    chunk = threadIdx.x * of_thread + block;
    rank = wanted - before;
  }
  __syncthreads();
  begin = chunk * kChunk + threadIdx.x * of_thread;
  end = begin + of_thread < a.vocabulary ? begin + of_thread : a.vocabulary;
  own.count = 0;
  for (int64_t i = begin; i < end; ++i) own.count += depth_at<T>(a, greatest, i) == depth;
  before = before_this(own, total).count;
  for (int64_t i = begin; i < end; ++i) {
    if (depth_at<T>(a, greatest, i) == depth && before++ == rank) a.ids[blockIdx.y] = i;
  }
}

template <class T>
void launch_rows(const SamplingArguments& a, int64_t rows, RowWork* work, cudaStream_t stream) {
  const dim3 grid(blocks_for(a.vocabulary, kChunk), static_cast<unsigned>(rows));
  measure<T><<<grid, kThreads, 0, stream>>>(a, work);
  if (a.temperature > 0) {
    Place places[4];
    int count = 0;
    if (a.top_k < a.vocabulary) places[count++] = Place::kTopK;
    if (a.top_p < 1) places[count++] = Place::kTopP;
    places[count++] = Place::kDraw;
    places[count] = Place::kNone;
    for (int i = 0; i < count; ++i) {
      for (int pass = i == 0 ? 0 : 1; pass < kPasses; ++pass) {
        descend<T><<<grid, kThreads, 0, stream>>>(a, work, pass, places[i], places[i + 1]);
      }
    }
  }
  name_id<T><<<grid, kThreads, 0, stream>>>(a, work);
}

}  // namespace

void launch_sampling(Storage storage, const SamplingArguments& a, int64_t rows, void* workspace, cudaStream_t stream) {
  with_device_type(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (rows > 0) launch_rows<T>(a, rows, static_cast<RowWork*>(workspace), stream);
  });
}

}  // namespace limbeck::kernels
