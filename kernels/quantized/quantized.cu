// Quantized matrices on CUDA: unpacking of rows, and the product with a few rows of x that reads the codes once. A
// thread takes a pack (16 bytes) of codes where rows begin at multiples of it, else one code; a pack has one scale. Of
// codes of 2 or 3 bits it is the pack of nibbles that they are widened to.
#include "kernels/cuda/device_storage.cuh"
#include "kernels/cuda/launch_shape.cuh"
#include "kernels/quantized/quantized_cuda.h"

namespace limbeck::kernels {
namespace {

constexpr int kThreads = 256, kProductThreads = 128, kWarp = 32;

template <CodeKind kind>
constexpr int kPackCodes = kind == CodeKind::kInt8 ? 16 : 32;
static_assert(kPackCodes<CodeKind::kInt4> == kBlockCodes && kSmallestGroup % kBlockCodes == 0 &&
                  kNf4Block % kPackCodes<CodeKind::kNf4> == 0,
              "a pack has one scale");

struct Levels {
  float nf4[kNf4Levels.size()];
  float dynamic[kDynamicLevels.size()];
};
constexpr Levels made_levels() {
  Levels all{};
  for (size_t i = 0; i < kNf4Levels.size(); ++i) all.nf4[i] = kNf4Levels[i];
  for (size_t i = 0; i < kDynamicLevels.size(); ++i) all.dynamic[i] = kDynamicLevels[i];
  return all;
}
__device__ const Levels kLevels = made_levels();

// Lanes ask for levels of their own, which constant memory would give one after the other.
template <CodeKind kind>
__device__ __forceinline__ void fill_levels(const QuantizedView& v, Levels& levels) {
  if constexpr (kind == CodeKind::kNf4) {
    if (threadIdx.x < 16) levels.nf4[threadIdx.x] = kLevels.nf4[threadIdx.x];
    if (v.scale_codes != nullptr) {
      for (unsigned i = threadIdx.x; i < 256; i += blockDim.x) levels.dynamic[i] = kLevels.dynamic[i];
    }
    __syncthreads();
  }
}

using Words = Pack<uint32_t, 4>;

// Code i of a pack: from the low end, but of nf4 the high half of a byte before the low one.
template <CodeKind kind>
__device__ __forceinline__ int code_of(const Words& words, int i) {
  if constexpr (kind == CodeKind::kInt8) {
    return static_cast<int8_t>(words.value[i / 4] >> i % 4 * 8);
  } else if constexpr (kind == CodeKind::kInt4) {
    return static_cast<int>(words.value[i / 8] >> i % 8 * 4 & 15u);
  } else {
    return static_cast<int>(words.value[i / 8] >> (i % 8 / 2 * 8 + (i % 2 == 0 ? 4 : 0)) & 15u);
  }
}

template <CodeKind kind>
__device__ __forceinline__ Words pack_at(const QuantizedView& v, int64_t row, int64_t column) {
  if constexpr (kind == CodeKind::kInt4) {
    const uint32_t* from = row_words(v, row) + column / kBlockCodes * v.format.bits;
    Words nibbles;
    if (v.format.bits == 2) {
      widen_block<2>(from, nibbles.value);
    } else if (v.format.bits == 3) {
      widen_block<3>(from, nibbles.value);
    } else {
      nibbles = *reinterpret_cast<const Words*>(from);
    }
    return nibbles;
  } else {
    const int64_t index = row * v.columns + column, byte = kind == CodeKind::kInt8 ? index : index / 2;
    return *reinterpret_cast<const Words*>(static_cast<const uint8_t*>(v.codes) + byte);
  }
}

// Row by row from `row` on, or where ids are given those.
struct RowChoice {
  int64_t row;
  const int64_t* ids;
};

template <CodeKind kind, class T, int codes>
__global__ void __launch_bounds__(kThreads) dequantize(QuantizedView v, RowChoice rows, int64_t count, T* values) {
  __shared__ Levels levels;
  fill_levels<kind>(v, levels);
  const int64_t packs = rounded_up_quotient(v.columns, codes);
  const int64_t index = thread_number();
  const int64_t below = index / packs, column = index % packs * codes;
  if (below >= count) return;
  T* to = values + below * v.columns + column;
  const int64_t row = rows.ids == nullptr ? rows.row + below : rows.ids[below];
  if (row < 0 || row >= v.rows) {
    for (int i = 0; i < codes; ++i) put(to + i, 0.0f);
    return;
  }
  const ValueScale scale = scale_at<kind>(v, row, column, levels.dynamic);
  if constexpr (codes == 1) {
    put(to, value_of<kind>(code_at<kind>(v, row, column), scale, levels.nf4));
  } else {
    const Words words = pack_at<kind>(v, row, column);
    constexpr int kStored = kPackElements<T>;
    using Stored = Pack<T, kStored>;
    for (int i = 0; i < codes; i += kStored) {
      Stored stored;
      for (int j = 0; j < kStored; ++j) {
        put(&stored.value[j], value_of<kind>(code_of<kind>(words, i + j), scale, levels.nf4));
      }
      *reinterpret_cast<Stored*>(to + i) = stored;
    }
  }
}

// As a product with many rows of x has it: what is generated is what was evaluated.
template <class T>
__device__ __forceinline__ float rounded(float value) {
  T stored;
  put(&stored, value);
  return widened(stored);
}

constexpr int kRowsOfWarp = 2;  // of x: sums of more take too many registers

// Brings the next `codes` to the front.
template <CodeKind kind, int codes>
__device__ __forceinline__ void turn(Words& words) {
  constexpr int bits = codes * (kind == CodeKind::kInt8 ? 8 : 4);
  const Words before = words;
  for (int i = 0; i < 4; ++i) {
    if constexpr (bits < 32) {
      words.value[i] = before.value[i] >> bits | before.value[(i + 1) % 4] << (32 - bits);
    } else {
      words.value[i] = before.value[(i + bits / 32) % 4];
    }
  }
}

// The first codes of a pack by those of each row of x.
template <CodeKind kind, class T, int most>
__device__ __forceinline__ void add_products(const Words& words, const ValueScale& scale, const Levels& levels,
                                             const T* x, int64_t stride, int count, float (&sums)[most]) {
  constexpr int kRead = kPackElements<T>;
  float w[kRead];
  for (int j = 0; j < kRead; ++j) w[j] = rounded<T>(value_of<kind>(code_of<kind>(words, j), scale, levels.nf4));
  for (int r = 0; r < most; ++r) {
    if (r >= count) continue;
    const auto read = *reinterpret_cast<const Pack<T, kRead>*>(x + r * stride);
    for (int j = 0; j < kRead; ++j) sums[r] += w[j] * widened(read.value[j]);
  }
}

// A warp takes an output row and a few rows of x: lane after lane a pack of codes, then the sum over the lanes. Where
// there are more rows of x, the next warp takes them with the same codes, which it finds in the cache.
template <CodeKind kind, class T, int codes, int most>
__global__ void __launch_bounds__(kProductThreads, 8) few_rows_product(FewRowsProduct p) {
  __shared__ Levels levels;
  const QuantizedView& v = p.weight;
  fill_levels<kind>(v, levels);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * (kProductThreads / kWarp) + threadIdx.x / kWarp;
  const int64_t groups = rounded_up_quotient(p.count, most), row = warp / groups, first_x = warp % groups * most;
  if (row >= v.rows) return;  // a whole warp
  const int count = static_cast<int>(p.count - first_x);
  const auto* x = static_cast<const T*>(p.x) + first_x * v.columns;
  float sums[most] = {};
  for (int64_t column = lane * codes; column < v.columns; column += kWarp * codes) {
    const ValueScale scale = scale_at<kind>(v, row, column, levels.dynamic);
    if constexpr (codes == 1) {
      const float w = rounded<T>(value_of<kind>(code_at<kind>(v, row, column), scale, levels.nf4));
      for (int r = 0; r < most; ++r) {
        if (r < count) sums[r] += w * widened(x[r * v.columns + column]);
      }
    } else {
      Words words = pack_at<kind>(v, row, column);
#pragma unroll 1  // all of it at once takes more registers than there are
      for (int i = 0; i < codes; i += kPackElements<T>) {
        add_products<kind, T, most>(words, scale, levels, x + column + i, v.columns, count, sums);
        turn<kind, kPackElements<T>>(words);
      }
    }
  }
  const float bias = p.bias == nullptr ? 0.0f : widened(static_cast<const T*>(p.bias)[row]);
  for (int r = 0; r < most; ++r) {
    if (r >= count) continue;
    const float sum = warp_sum(sums[r]);
    if (lane == r) put(static_cast<T*>(p.y) + (first_x + r) * v.rows + row, sum + bias);
  }
}

template <CodeKind kind>
struct KindTag {
  static constexpr CodeKind kKind = kind;
};
// Calls body(kind, type) with tags of both.
template <class Body>
void with_kind_and_type(QuantizedFormat format, Storage storage, Body body) {
  with_narrow_device_type(storage, [&](auto type) {
    switch (format.kind) {
      case CodeKind::kInt8:
        return body(KindTag<CodeKind::kInt8>{}, type);
      case CodeKind::kInt4:
        return body(KindTag<CodeKind::kInt4>{}, type);
      case CodeKind::kNf4:
        return body(KindTag<CodeKind::kNf4>{}, type);
    }
  });
}

// Whether every row begins with a pack of codes and one of values.
template <CodeKind kind, class T>
bool in_packs(const QuantizedView& v, const void* values) {
  return reinterpret_cast<uintptr_t>(v.codes) % 16 == 0 && v.columns % kPackCodes<kind> == 0 &&
         packable<T>(values, v.columns);
}

template <CodeKind kind, class T, int codes>
void launch_product(const FewRowsProduct& p, cudaStream_t stream) {
  const auto blocks = [&p](int64_t of_warp) {
    return blocks_for(p.weight.rows * rounded_up_quotient(p.count, of_warp), kProductThreads / kWarp);
  };
  if (p.count == 1) {
    few_rows_product<kind, T, codes, 1><<<blocks(1), kProductThreads, 0, stream>>>(p);
  } else {
    few_rows_product<kind, T, codes, kRowsOfWarp><<<blocks(kRowsOfWarp), kProductThreads, 0, stream>>>(p);
  }
}

void launch_rows(const QuantizedView& weight, RowChoice rows, int64_t count, Storage storage, void* values,
                 cudaStream_t stream) {
  if (count == 0 || weight.columns == 0) return;
  with_kind_and_type(weight.format, storage, [&](auto kind_tag, auto type) {
    using T = typename decltype(type)::Type;
    constexpr CodeKind kKind = decltype(kind_tag)::kKind;
    constexpr int kCodes = kPackCodes<kKind>;
    auto* to = static_cast<T*>(values);
    if (in_packs<kKind, T>(weight, values)) {
      const unsigned blocks = blocks_for(count * (weight.columns / kCodes), kThreads);
      dequantize<kKind, T, kCodes><<<blocks, kThreads, 0, stream>>>(weight, rows, count, to);
    } else {
      const unsigned blocks = blocks_for(count * weight.columns, kThreads);
      dequantize<kKind, T, 1><<<blocks, kThreads, 0, stream>>>(weight, rows, count, to);
    }
  });
}

}  // namespace

void launch_dequantize(const QuantizedView& weight, int64_t row, int64_t count, Storage storage, void* values,
                       cudaStream_t stream) {
  launch_rows(weight, {row, nullptr}, count, storage, values, stream);
}

void launch_lookup(const QuantizedView& weight, const int64_t* ids, int64_t count, Storage storage, void* values,
                   cudaStream_t stream) {
  launch_rows(weight, {0, ids}, count, storage, values, stream);
}

void launch_few_rows_product(Storage storage, const FewRowsProduct& product, cudaStream_t stream) {
  if (product.count == 0 || product.weight.rows == 0) return;
  with_kind_and_type(product.weight.format, storage, [&](auto kind_tag, auto type) {
    using T = typename decltype(type)::Type;
    constexpr CodeKind kKind = decltype(kind_tag)::kKind;
    if (in_packs<kKind, T>(product.weight, product.x)) {
      launch_product<kKind, T, kPackCodes<kKind>>(product, stream);
    } else {
      launch_product<kKind, T, 1>(product, stream);
    }
  });
}

}  // namespace limbeck::kernels
