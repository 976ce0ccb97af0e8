// Products of 8-bit codes in tiles of y: with AMX (int8_tiles.h) and VNNI as they are, else widened to 16 bits in
// registers, whose products and their pairs no int32 loses. Integer sums have no order, so every instruction set has
// the same.
#include "kernels/quantized/int8_dynamic_loops.h"

#include <algorithm>

#include "kernels/cpu/simd.h"
#include "kernels/quantized/quantized_formula.h"
#if defined(__AMX_INT8__) || defined(LIMBECK_EMULATED_TILES)
#include "kernels/quantized/int8_tiles.h"
#endif

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kTile = 64;     // rows and columns of y at a time
constexpr int64_t kDepth = 4096;  // of one pass: what a tile reads of x and the weight then stays near

// ---- codes of x ----------------------------------------------------------------------------------------------------

template <class T>
float largest_magnitude(const T* x, int64_t width) {
  constexpr int64_t lanes = kLanes<float>;
  I32 most = {};  // as integers magnitudes are in order, infinity and NaN above all
  for (int64_t i = 0; i < width; i += lanes) {
    const I32 bits = (I32)((U32)load_wide_some(x + i, width - i) & 0x7fffffffu);
    most = bits > most ? bits : most;
  }
  int32_t largest = 0;
  for (int64_t i = 0; i < lanes; ++i) largest = std::max(largest, most[i]);
  return float_of_bits(static_cast<uint32_t>(largest));
}

typedef int8_t Codes __attribute__((vector_size(kLanes<float>)));

template <class T>
float quantize_row(const T* x, int64_t width, float steps, int8_t* codes) {
  constexpr int64_t lanes = kLanes<float>;
  const float largest = largest_magnitude(x, width), scale = largest / steps;
  if (!(largest < __builtin_inff()) || scale == 0.0f) {
    for (int64_t i = 0; i < width; ++i) codes[i] = 0;
    return largest < __builtin_inff() ? 0.0f : __builtin_nanf("");
  }
  for (int64_t i = 0; i < width; i += lanes) {
    F32 code = load_wide_some(x + i, width - i) / splat(scale);
    code = code > 127.0f ? splat(127.0f) : code < -128.0f ? splat(-128.0f) : code;
    const I32 bits = (I32)(code + 12582912.0f);  // 1.5 * 2^23: the adder rounds, and the code is in the low bits
    const auto low = __builtin_convertvector(bits, Codes);
    __builtin_memcpy(codes + i, &low, static_cast<size_t>(std::min(lanes, width - i)));
  }
  return scale;
}

void quantize_rows(Storage storage, const void* x, int64_t count, int64_t width, float steps, int8_t* codes,
                   float* scales) {
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) {
      for (int64_t row = 0; row < count; ++row)
        scales[row] = quantize_row(static_cast<const T*>(x) + row * width, width, steps, codes + row * width);
    }
  });
}

// ---- sums of products ----------------------------------------------------------------------------------------------

// A step is as many codes of a row as one instruction multiplies. VNNI takes the matrix's as unsigned ones, kExcess
// more than they are: a sum then begins with what that adds, taken off. It may wrap round on its way, as unsigned sums
// do.
#if defined(__AVX512VNNI__)
using Sums = __m512i;
constexpr int64_t kStep = 64;
constexpr int32_t kExcess = 128;
LIMBECK_INLINE Sums step_of_x(const int8_t* from) { return _mm512_loadu_si512(from); }
LIMBECK_INLINE Sums step_of_weight(const int8_t* from) {
  return _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi8(static_cast<char>(kExcess)));
}
LIMBECK_INLINE Sums with_products(Sums sums, Sums x, Sums weight) { return _mm512_dpbusd_epi32(sums, weight, x); }
#elif defined(__AVX512BW__)
using Sums = __m512i;
constexpr int64_t kStep = 32;
constexpr int32_t kExcess = 0;
LIMBECK_INLINE Sums step_of_x(const int8_t* from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
LIMBECK_INLINE Sums with_products(Sums sums, Sums a, Sums b) { return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b)); }
#elif defined(__AVX2__)
using Sums = __m256i;
constexpr int64_t kStep = 16;
constexpr int32_t kExcess = 0;
LIMBECK_INLINE Sums step_of_x(const int8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
LIMBECK_INLINE Sums with_products(Sums sums, Sums a, Sums b) { return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)); }
#else
typedef int32_t Sums __attribute__((vector_size(16)));
constexpr int64_t kStep = 4;
constexpr int32_t kExcess = 0;
LIMBECK_INLINE Sums step_of_x(const int8_t* from) { return Sums{from[0], from[1], from[2], from[3]}; }
LIMBECK_INLINE Sums with_products(Sums sums, Sums a, Sums b) { return sums + a * b; }
#endif
#if !defined(__AVX512VNNI__)
LIMBECK_INLINE Sums step_of_weight(const int8_t* from) { return step_of_x(from); }
#endif

constexpr int kColumnsTogether = 4;
typedef uint32_t Totals __attribute__((vector_size(16)));  // of four columns
static_assert(sizeof(Totals) == kColumnsTogether * sizeof(uint32_t));

#if defined(__AVX2__)
LIMBECK_INLINE __m256i halves_added(__m256i sums) { return sums; }
#if defined(__AVX512BW__)
LIMBECK_INLINE __m256i halves_added(__m512i sums) {
  __m256i half[2];
  __builtin_memcpy(half, &sums, sizeof half);
  return _mm256_add_epi32(half[0], half[1]);
}
#endif
// Three steps of a transposition, each two vectors into one sum.
LIMBECK_INLINE Totals totals(const Sums (&sums)[kColumnsTogether]) {
  __m256i pair[2];
  for (int i = 0; i < 2; ++i) {
    const __m256i a = halves_added(sums[2 * i]), b = halves_added(sums[2 * i + 1]);
    pair[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  }
  const __m256i all =
      _mm256_add_epi32(_mm256_unpacklo_epi64(pair[0], pair[1]), _mm256_unpackhi_epi64(pair[0], pair[1]));
  return (Totals)_mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
#else
LIMBECK_INLINE Totals totals(const Sums (&sums)[kColumnsTogether]) {
  Totals all{};
  for (int c = 0; c < kColumnsTogether; ++c) {
    for (int i = 0; i < 4; ++i) all[c] += static_cast<uint32_t>(sums[c][i]);
  }
  return all;
}
#endif

LIMBECK_INLINE void add_totals(uint32_t* to, Totals totals) {
  Totals before;
  __builtin_memcpy(&before, to, sizeof before);
  before += totals;
  __builtin_memcpy(to, &before, sizeof before);
}

// What is left of a row behind its last whole step.
struct Rest {
  alignas(64) int8_t codes[kStep] = {};
  Rest(const int8_t* from, int64_t count) { __builtin_memcpy(codes, from, static_cast<size_t>(count)); }
};

#if defined(__AVX512BW__)
constexpr int kRowsTogether = 4;
#else
constexpr int kRowsTogether = 2;
#endif

LIMBECK_INLINE void add_step(Sums (&sums)[kColumnsTogether], Sums x, const Sums (&weight)[kColumnsTogether]) {
#pragma GCC unroll 8
  for (int c = 0; c < kColumnsTogether; ++c) sums[c] = with_products(sums[c], x, weight[c]);
}

// Adds to to[r * kTile + c] the products of depth k; rows of x lie `stride` apart, those of the matrix at b[c], of
// which what lies `ahead` is asked for, because rows lie too far apart to be foreseen; into the second cache: the first
// one would lose it before it is read.
template <int Rows>
__attribute__((noinline)) void add_products(const int8_t* a, const int8_t* const (&b)[kColumnsTogether], int64_t stride,
                                            int64_t ahead, int64_t k, uint32_t* to) {
  Sums sums[Rows][kColumnsTogether] = {}, weight[kColumnsTogether];
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumnsTogether; ++c) {
      weight[c] = step_of_weight(b[c] + i);
      __builtin_prefetch(b[c] + i + ahead, 0, 2);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) add_step(sums[r], step_of_x(a + r * stride + i), weight);
  }
  if (i < k) {
    for (int c = 0; c < kColumnsTogether; ++c) weight[c] = step_of_weight(Rest(b[c] + i, k - i).codes);
    for (int r = 0; r < Rows; ++r) add_step(sums[r], step_of_x(Rest(a + r * stride + i, k - i).codes), weight);
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) add_totals(to + r * kTile, totals(sums[r]));
}

template <int Rows>
void add_some_products(int64_t rows, const int8_t* a, const int8_t* const (&b)[kColumnsTogether], int64_t stride,
                       int64_t ahead, int64_t k, uint32_t* to) {
  if (rows >= Rows) return add_products<Rows>(a, b, stride, ahead, k, to);
  if constexpr (Rows > 1) add_some_products<Rows - 1>(rows, a, b, stride, ahead, k, to);
}

// The sum of a row of x, kExcess times.
LIMBECK_INLINE uint32_t excess_of(const int8_t* x, int64_t k) {
  uint32_t sum = 0;
  for (int64_t i = 0; kExcess != 0 && i < k; ++i) sum += static_cast<uint32_t>(int32_t{x[i]});
  return sum * static_cast<uint32_t>(kExcess);
}

// Adds to sums what codes [from, to) of the rows give.
void add_codes(const Int8Product& p, int64_t m, int64_t rows, int64_t n, int64_t columns, int64_t from, int64_t to,
               uint32_t* sums) {
  const auto* matrix = static_cast<const int8_t*>(p.weight.codes) + n * p.k;
  const int8_t* x = p.codes + m * p.stride;
  for (int64_t r = 0; r < rows; ++r) {
    const uint32_t excess = excess_of(x + r * p.stride + from, to - from);
    for (int64_t c = 0; c < columns; ++c) sums[r * kTile + c] -= excess;
  }
  for (int64_t k = from; k < to; k += kDepth) {
    const int64_t depth = std::min(kDepth, to - k);
    for (int64_t c = 0; c < columns; c += kColumnsTogether) {
      const int8_t* b[kColumnsTogether];  // where there is none, the last column once more
      for (int64_t i = 0; i < kColumnsTogether; ++i) b[i] = matrix + std::min(c + i, columns - 1) * p.k + k;
      for (int64_t r = 0; r < rows; r += kRowsTogether) {
        const int64_t ahead = r == 0 && n + c + 2 * kColumnsTogether <= p.n ? kColumnsTogether * p.k : 0;
        add_some_products<kRowsTogether>(rows - r, x + r * p.stride + k, b, p.stride, ahead, depth,
                                         sums + r * kTile + c);
      }
    }
  }
}

template <class T>
void finish_tile(const Int8Product& p, int64_t m, int64_t rows, int64_t n, int64_t columns,
                 const uint32_t (&sums)[kTile][kTile]) {
  constexpr int64_t lanes = kLanes<float>;
  const auto* bias = static_cast<const T*>(p.bias);
  alignas(64) float scales[kTile];
  for (int64_t c = 0; c < kTile; ++c) scales[c] = c < columns ? stored_scale(p.weight, n + c) : 0.0f;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += lanes) {
      const F32 exact = __builtin_convertvector((I32)load(sums[r] + c), F32);
      const F32 added = bias ? load_wide_some(bias + n + c, columns - c) : F32{};
      store_narrow_some(static_cast<T*>(p.y) + (m + r) * p.n + n + c,
                        exact * splat(p.scales[m + r]) * load(scales + c) + added, columns - c);
    }
  }
}

#if defined(__AMX_INT8__) || defined(LIMBECK_EMULATED_TILES)
constexpr int64_t kPackedDepth = 16384;  // deeper rows are packed anew for each tile of y
constexpr int64_t kScratchBytes = kTile * kPackedDepth;

// Rows that are packed once meet all columns; what is less than a tile wide or deep is left to the vectors.
template <class T>
void share_in_tiles(const Int8Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, int8_t* packed) {
  static const TileConfiguration configuration;
  LIMBECK_TILE_CONFIGURE(&configuration);
  alignas(64) uint32_t sums[kTile][kTile];
  const int64_t whole = p.k / kTileDepth * kTileDepth;
  for (int64_t m = m0; m < m1; m += kTile) {
    const int64_t rows = std::min(kTile, m1 - m), row_tiles = (rows + kTileSide - 1) / kTileSide;
    const int8_t* x = p.codes + m * p.stride;
    if (whole <= kPackedDepth) pack_rows(x, p.stride, rows, whole, packed);
    for (int64_t n = n0; n < n1; n += kTile) {
      const int64_t columns = std::min(kTile, n1 - n), by_tiles = columns / kTileSide * kTileSide;
      for (auto& row : sums) std::fill(row, row + kTile, 0);
      const int8_t* matrix = static_cast<const int8_t*>(p.weight.codes) + n * p.k;
      for (int64_t k = 0; k < whole && by_tiles > 0; k += kPackedDepth) {
        const int64_t depth = std::min(kPackedDepth, whole - k);
        if (whole > kPackedDepth) pack_rows(x + k, p.stride, rows, depth, packed);
        add_tiles(packed, row_tiles, matrix + k, p.k, by_tiles / kTileSide, depth, sums[0], kTile);
      }
      if (by_tiles > 0 && whole < p.k) add_codes(p, m, rows, n, by_tiles, whole, p.k, sums[0]);
      if (by_tiles < columns) add_codes(p, m, rows, n + by_tiles, columns - by_tiles, 0, p.k, sums[0] + by_tiles);
      finish_tile<T>(p, m, rows, n, columns, sums);
    }
  }
  LIMBECK_TILE_RELEASE();
}
#else
constexpr int64_t kScratchBytes = 0;
#endif

template <class T>
void share_of(const Int8Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, [[maybe_unused]] void* scratch) {
#if defined(__AMX_INT8__) || defined(LIMBECK_EMULATED_TILES)
  if (m1 - m0 >= kTileSide) return share_in_tiles<T>(p, m0, m1, n0, n1, static_cast<int8_t*>(scratch));
#endif
  alignas(64) uint32_t sums[kTile][kTile];
  for (int64_t n = n0; n < n1; n += kTile) {
    const int64_t columns = std::min(kTile, n1 - n);
    for (int64_t m = m0; m < m1; m += kTile) {
      const int64_t rows = std::min(kTile, m1 - m);
      for (int64_t r = 0; r < rows; ++r) std::fill(sums[r], sums[r] + kTile, 0);
      add_codes(p, m, rows, n, columns, 0, p.k, sums[0]);
      finish_tile<T>(p, m, rows, n, columns, sums);
    }
  }
}

void share(const Int8Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, void* scratch) {
  with_storage(p.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) share_of<T>(p, m0, m1, n0, n1, scratch);
  });
}

}  // namespace

const Int8DynamicLoops int8_dynamic_loops = {quantize_rows, share, kScratchBytes};

}  // namespace limbeck::kernels::LIMBECK_ISA
