// Products of 8-bit codes in tiles of y: codes are widened to 16 bits in registers, whose products and their pairs no
// int32 loses. Integer sums have no order, so every instruction set has the same.
#include "kernels/quantized/int8_dynamic_loops.h"

#include <algorithm>

#include "kernels/cpu/simd.h"
#include "kernels/quantized/quantized_formula.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

constexpr int64_t kTile = 64;    // rows and columns of y at a time
constexpr int64_t kDepth = 512;  // of one pass: what a tile reads of x and the weight then stays near

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

template <class T>
float quantize_row(const T* x, int64_t width, int8_t* codes) {
  constexpr int64_t lanes = kLanes<float>;
  const float largest = largest_magnitude(x, width), scale = largest / 127.5f;
  if (!(largest < __builtin_inff()) || scale == 0.0f) {
    for (int64_t i = 0; i < width; ++i) codes[i] = 0;
    return largest < __builtin_inff() ? 0.0f : __builtin_nanf("");
  }
  for (int64_t i = 0; i < width; i += lanes) {
    F32 code = load_wide_some(x + i, width - i) / splat(scale);
    code = code > 127.0f ? splat(127.0f) : code < -128.0f ? splat(-128.0f) : code;
    const U32 bits = (U32)(code + 12582912.0f);  // 1.5 * 2^23: the adder rounds, and the code is in the low bits
    for (int64_t j = 0; j < std::min(lanes, width - i); ++j) codes[i + j] = static_cast<int8_t>(bits[j] & 0xffu);
  }
  return scale;
}

void quantize_rows(Storage storage, const void* x, int64_t count, int64_t width, int8_t* codes, float* scales) {
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) {
      for (int64_t row = 0; row < count; ++row)
        scales[row] = quantize_row(static_cast<const T*>(x) + row * width, width, codes + row * width);
    }
  });
}

// ---- sums of products ----------------------------------------------------------------------------------------------

#if defined(__AVX512BW__)
using Sums = __m512i;
constexpr int64_t kStep = 32;
LIMBECK_INLINE Sums widened(const int8_t* from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
LIMBECK_INLINE Sums with_products(Sums sums, Sums a, Sums b) { return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b)); }
#elif defined(__AVX2__)
using Sums = __m256i;
constexpr int64_t kStep = 16;
LIMBECK_INLINE Sums widened(const int8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
LIMBECK_INLINE Sums with_products(Sums sums, Sums a, Sums b) { return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)); }
#else
typedef int32_t Sums __attribute__((vector_size(16)));
constexpr int64_t kStep = 4;
LIMBECK_INLINE Sums widened(const int8_t* from) { return Sums{from[0], from[1], from[2], from[3]}; }
LIMBECK_INLINE Sums with_products(Sums sums, Sums a, Sums b) { return sums + a * b; }
#endif

LIMBECK_INLINE int32_t total(Sums sums) {
  int32_t lane[sizeof(Sums) / sizeof(int32_t)], all = 0;
  __builtin_memcpy(lane, &sums, sizeof lane);
  for (const int32_t each : lane) all += each;
  return all;
}

// Adds to to[r * kTile + c] the products of depth k; rows of a and b lie `stride` apart.
template <int Rows, int Columns>
__attribute__((noinline)) void add_products(const int8_t* a, const int8_t* b, int64_t stride, int64_t k, int32_t* to) {
  Sums sums[Rows][Columns] = {};
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    Sums of_b[Columns];
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) of_b[c] = widened(b + c * stride + i);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Sums of_a = widened(a + r * stride + i);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) sums[r][c] = with_products(sums[r][c], of_a, of_b[c]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) {
      int32_t sum = total(sums[r][c]);
      for (int64_t j = i; j < k; ++j) sum += int32_t{a[r * stride + j]} * b[c * stride + j];
      to[r * kTile + c] += sum;
    }
  }
}

constexpr int kColumnsTogether = 4;

template <int Rows>
void add_row_products(const int8_t* a, const int8_t* b, int64_t stride, int64_t k, int64_t n, int32_t* to) {
  int64_t c = 0;
  for (; c + kColumnsTogether <= n; c += kColumnsTogether)
    add_products<Rows, kColumnsTogether>(a, b + c * stride, stride, k, to + c);
  for (; c < n; ++c) add_products<Rows, 1>(a, b + c * stride, stride, k, to + c);
}

void sum_tile(const Int8Product& p, int64_t m, int64_t rows, int64_t n, int64_t columns, int32_t (*sums)[kTile]) {
  __builtin_memset(sums, 0, static_cast<size_t>(rows * kTile) * sizeof(int32_t));
  const auto* b = static_cast<const int8_t*>(p.weight.codes) + n * p.k;
  const int8_t* a = p.codes + m * p.k;
  for (int64_t k = 0; k < p.k; k += kDepth) {
    const int64_t depth = std::min(kDepth, p.k - k);
    int64_t r = 0;
    for (; r + 2 <= rows; r += 2) add_row_products<2>(a + r * p.k + k, b + k, p.k, depth, columns, sums[r]);
    if (r < rows) add_row_products<1>(a + r * p.k + k, b + k, p.k, depth, columns, sums[r]);
  }
}

template <class T>
void share_of(const Int8Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  constexpr int64_t lanes = kLanes<float>;
  alignas(64) int32_t sums[kTile][kTile];
  alignas(64) float scales[kTile];
  const auto* bias = static_cast<const T*>(p.bias);
  for (int64_t n = n0; n < n1; n += kTile) {
    const int64_t columns = std::min(kTile, n1 - n);
    for (int64_t c = 0; c < kTile; ++c) scales[c] = c < columns ? stored_scale(p.weight, n + c) : 0.0f;
    for (int64_t m = m0; m < m1; m += kTile) {
      const int64_t rows = std::min(kTile, m1 - m);
      sum_tile(p, m, rows, n, columns, sums);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; c += lanes) {
          const F32 exact = __builtin_convertvector(load(sums[r] + c), F32);
          const F32 added = bias ? load_wide_some(bias + n + c, columns - c) : F32{};
          store_narrow_some(static_cast<T*>(p.y) + (m + r) * p.n + n + c,
                            exact * splat(p.scales[m + r]) * load(scales + c) + added, columns - c);
        }
      }
    }
  }
}

void share(const Int8Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  with_storage(p.storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if constexpr (sizeof(T) < sizeof(double)) share_of<T>(p, m0, m1, n0, n1);
  });
}

}  // namespace

const Int8DynamicLoops int8_dynamic_loops = {quantize_rows, share};

}  // namespace limbeck::kernels::LIMBECK_ISA
