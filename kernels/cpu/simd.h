// Sixteen values at a time, for the *_loops.cpp files, which are built once for each instruction set (LIMBECK_ISA names
// the namespace). The number of lanes is 16 on every machine, and products are fused with sums in exp_of_nonpositive
// and reciprocal_of_one_plus alone, so all else has the same bits on all instruction sets. Include nothing here that
// could emit a shared inline function: the linker would keep one copy for all, perhaps the AVX-512 one.
#pragma once
#include "kernels/operator/storage.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define LIMBECK_INLINE inline __attribute__((always_inline))

namespace limbeck::kernels::LIMBECK_ISA {

inline constexpr int kLanes = 16;
#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

typedef float F32 __attribute__((vector_size(kVectorBytes)));
typedef double F64 __attribute__((vector_size(kVectorBytes)));
typedef int32_t I32 __attribute__((vector_size(kVectorBytes)));
typedef uint32_t U32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t U16 __attribute__((vector_size(kVectorBytes / 2)));

template <class S>
struct NativeOf;
template <>
struct NativeOf<float> {
  using Type = F32;
};
template <>
struct NativeOf<double> {
  using Type = F64;
};

template <class S>
struct Block {
  using Native = typename NativeOf<S>::Type;
  static constexpr int kPerPart = kVectorBytes / static_cast<int>(sizeof(S));
  static constexpr int kParts = kLanes / kPerPart;
  Native part[kParts];

  Block() = default;
  LIMBECK_INLINE explicit Block(double value) {
    for (int k = 0; k < kParts; ++k) part[k] = Native{} + static_cast<S>(value);
  }
};

#define LIMBECK_BLOCK_OPERATOR(op)                                                 \
  template <class S>                                                               \
  LIMBECK_INLINE Block<S> operator op(Block<S> a, const Block<S>& b) {             \
    for (int k = 0; k < Block<S>::kParts; ++k) a.part[k] = a.part[k] op b.part[k]; \
    return a;                                                                      \
  }
LIMBECK_BLOCK_OPERATOR(+)
LIMBECK_BLOCK_OPERATOR(-)
LIMBECK_BLOCK_OPERATOR(*)
LIMBECK_BLOCK_OPERATOR(/)
#undef LIMBECK_BLOCK_OPERATOR

template <class S>
LIMBECK_INLINE Block<S> operator-(Block<S> a) {
  for (int k = 0; k < Block<S>::kParts; ++k) a.part[k] = -a.part[k];
  return a;
}

// condition >= 0 ? yes : no, lane by lane (a NaN condition takes `no`).
template <class S>
LIMBECK_INLINE Block<S> where_nonnegative(const Block<S>& condition, Block<S> yes, const Block<S>& no) {
  using Native = typename Block<S>::Native;
  for (int k = 0; k < Block<S>::kParts; ++k) yes.part[k] = condition.part[k] >= Native{} ? yes.part[k] : no.part[k];
  return yes;
}

template <class S>
LIMBECK_INLINE Block<S> clamp_keeping_nan(Block<S> a, double low, double high) {
  using Native = typename Block<S>::Native;
  const Native lo = Native{} + static_cast<S>(low), hi = Native{} + static_cast<S>(high);
  for (int k = 0; k < Block<S>::kParts; ++k) {
    a.part[k] = a.part[k] < lo ? lo : a.part[k];
    a.part[k] = a.part[k] > hi ? hi : a.part[k];
  }
  return a;
}

// The sum over the lanes, always as the same tree.
template <class S>
LIMBECK_INLINE S sum_of_lanes(const Block<S>& a) {
  S lane[kLanes];
  __builtin_memcpy(lane, a.part, sizeof(lane));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return lane[0];
}

// a * b + c, with one rounding where the machine can. Only approximations with error to spare use it, so that all other
// results are the same on every machine.
LIMBECK_INLINE F32 fused(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
LIMBECK_INLINE F32 splat(float value) { return F32{} + value; }

// exp(a) for a <= 0, within 2 units in the last place; 0 below -87, where results turn subnormal. For NaN anything may
// come out: the gated formulas multiply by the NaN itself.
LIMBECK_INLINE Block<float> exp_of_nonpositive(Block<float> a) {
  for (int k = 0; k < Block<float>::kParts; ++k) {
    const F32 x = a.part[k];
    // n = round(x / ln 2): adding 1.5 * 2^23 leaves n in the low bits of the sum.
    const F32 shifted = fused(x, splat(1.44269504088896f), splat(12582912.0f));
    const F32 n = shifted - 12582912.0f;
    const F32 r = fused(n, splat(2.12194440e-4f), fused(n, splat(-0.693359375f), x));  // ln 2 in two parts
    // exp(r) = 1 + r + r^2 p(r), p fitted to the least greatest relative error on |r| <= ln 2 / 2: 3e-9.
    F32 p = fused(r, splat(0.00138145394f), splat(0.00836874545f));
    p = fused(p, r, splat(0.0416683890f));
    p = fused(p, r, splat(0.166665211f));
    p = fused(p, r, splat(0.49999994f));
    p = fused(fused(p, r, splat(1.0f)), r, splat(1.0f));
    const F32 scaled = (F32)((U32)p + ((U32)shifted << 23));
    a.part[k] = x < -87.0f ? F32{} : scaled;
  }
  return a;
}

LIMBECK_INLINE Block<double> exp_of_nonpositive(Block<double> a) {
  for (int k = 0; k < Block<double>::kParts; ++k) {
    for (int j = 0; j < Block<double>::kPerPart; ++j) a.part[k][j] = __builtin_exp(a.part[k][j]);
  }
  return a;
}

// 1 / (1 + t) for 0 <= t <= 1. Machines divide 16 lanes in 16 cycles or more; the best quadratic (off by 1 %) and two
// steps of Newton's iteration (1e-4, 1e-8) take 4, and come as close: within 1.5 units in the last place.
LIMBECK_INLINE Block<float> reciprocal_of_one_plus(Block<float> t) {
  for (int k = 0; k < Block<float>::kParts; ++k) {
    const F32 x = t.part[k], minus_d = -1.0f - x;
    F32 y = fused(fused(x, splat(0.323232323f), splat(-0.808080808f)), x, splat(0.989898990f));
    for (int step = 0; step < 2; ++step) {
      y = fused(y, fused(minus_d, y, splat(1.0f)), y);
    }
    t.part[k] = y;
  }
  return t;
}
LIMBECK_INLINE Block<double> reciprocal_of_one_plus(Block<double> t) {
  return Block<double>(1.0) / (Block<double>(1.0) + t);
}

LIMBECK_INLINE Block<float> minus_magnitude(Block<float> a) {
  for (int k = 0; k < Block<float>::kParts; ++k) a.part[k] = (F32)((U32)a.part[k] | 0x80000000u);
  return a;
}
LIMBECK_INLINE Block<double> minus_magnitude(Block<double> a) {
  for (int k = 0; k < Block<double>::kParts; ++k) a.part[k] = a.part[k] > F64{} ? -a.part[k] : a.part[k];
  return a;
}

LIMBECK_INLINE Block<float> square_root(Block<float> a) {
  for (int k = 0; k < Block<float>::kParts; ++k) {
#if defined(__AVX512F__)
    a.part[k] = (F32)_mm512_maskz_sqrt_ps(0xffff, (__m512)a.part[k]);
#elif defined(__AVX2__)
    a.part[k] = (F32)_mm256_sqrt_ps((__m256)a.part[k]);
#else
    for (int j = 0; j < Block<float>::kPerPart; ++j) a.part[k][j] = __builtin_sqrtf(a.part[k][j]);
#endif
  }
  return a;
}
LIMBECK_INLINE Block<double> square_root(Block<double> a) {
  for (int k = 0; k < Block<double>::kParts; ++k) {
    for (int j = 0; j < Block<double>::kPerPart; ++j) a.part[k][j] = __builtin_sqrt(a.part[k][j]);
  }
  return a;
}

// ---- memory: widening loads and stores that round to nearest even, a NaN staying a NaN ----

struct Whole {};  // all 16 lanes
struct Front {    // the first n lanes; the rest load as zero and are not stored
  int n;
};

template <class T>
LIMBECK_INLINE auto load_direct(const T* from) {
  Block<T> block;
  __builtin_memcpy(block.part, from, sizeof(block.part));
  return block;
}
LIMBECK_INLINE Block<float> load(const float* from, Whole) { return load_direct(from); }
LIMBECK_INLINE Block<double> load(const double* from, Whole) { return load_direct(from); }
LIMBECK_INLINE void store(float* to, const Block<float>& a, Whole) { __builtin_memcpy(to, a.part, sizeof(a.part)); }
LIMBECK_INLINE void store(double* to, const Block<double>& a, Whole) { __builtin_memcpy(to, a.part, sizeof(a.part)); }

// GCC 12 splits __builtin_convertvector into halves; these are one instruction.
LIMBECK_INLINE U32 widen(U16 raw) {
#if defined(__AVX512F__)
  return (U32)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)raw);
#elif defined(__AVX2__)
  return (U32)_mm256_cvtepu16_epi32((__m128i)raw);
#else
  return __builtin_convertvector(raw, U32);
#endif
}

LIMBECK_INLINE U16 upper_halves(U32 values) {
#if defined(__AVX512F__)
  typedef uint16_t Words __attribute__((vector_size(64)));
  const Words odd = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                     1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i gathered = _mm512_maskz_permutexvar_epi16(0xffffffff, (__m512i)odd, (__m512i)values);
  U16 low;
  __builtin_memcpy(&low, &gathered, sizeof(low));
  return low;
#elif defined(__AVX2__)
  const __m256i high = (__m256i)(values >> 16);
  return (U16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08));
#else
  return __builtin_convertvector(values >> 16, U16);
#endif
}

// Adds half a unit of the upper 16 bits, less one in the lowest place unless the upper half is odd: to nearest even.
LIMBECK_INLINE U32 rounded_to_upper_half(U32 bits) {
#if defined(__AVX512F__)
  const __mmask16 odd = _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32(0x10000));
  const __m512i sum = _mm512_add_epi32((__m512i)bits, _mm512_set1_epi32(0x7fff));
  return (U32)_mm512_mask_add_epi32(sum, odd, sum, _mm512_set1_epi32(1));
#else
  return bits + 0x7fffu + ((bits >> 16) & 1u);
#endif
}

LIMBECK_INLINE Block<float> load(const BFloat16Bits* from, Whole) {
  Block<float> block;
  for (int k = 0; k < Block<float>::kParts; ++k) {
    U16 raw;
    __builtin_memcpy(&raw, from + k * Block<float>::kPerPart, sizeof(raw));
    block.part[k] = (F32)(widen(raw) << 16);
  }
  return block;
}

// A NaN needs no care here: rounding could only carry one with all low 16 bits set into the sign, and the NaNs that
// reach a bfloat16 result came from bfloat16 elements (low bits clear) or from the machine's own default.
LIMBECK_INLINE void store(BFloat16Bits* to, const Block<float>& a, Whole) {
  for (int k = 0; k < Block<float>::kParts; ++k) {
    const U16 raw = upper_halves(rounded_to_upper_half((U32)a.part[k]));
    __builtin_memcpy(to + k * Block<float>::kPerPart, &raw, sizeof(raw));
  }
}

// The maskz forms: the plain ones trip a false -Wmaybe-uninitialized in GCC 12.
LIMBECK_INLINE F32 widen_float16(U16 raw) {
#if defined(__AVX512F__)
  return (F32)_mm512_maskz_cvtph_ps(0xffff, (__m256i)raw);
#elif defined(__AVX2__)
  return (F32)_mm256_cvtph_ps((__m128i)raw);
#else
  const U32 half = widen(raw);
  const U32 body = half & 0x7fffu;
  const U32 normal = (body << 13) + (112u << 23);
  const U32 special = ((body << 13) + (224u << 23)) | (body > 0x7c00u ? U32{} + 0x400000u : U32{});
  const U32 subnormal = (U32)(__builtin_convertvector((I32)body, F32) * 5.9604644775390625e-8f);  // 2^-24, exact
  const U32 finite = body < 0x400u ? subnormal : normal;
  return (F32)((body >= 0x7c00u ? special : finite) | ((half & 0x8000u) << 16));
#endif
}

LIMBECK_INLINE U16 narrow_to_float16(F32 value) {
#if defined(__AVX512F__)
  return (U16)_mm512_maskz_cvtps_ph(0xffff, (__m512)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (U16)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const U32 bits = (U32)value;
  const U32 body = bits & 0x7fffffffu;
  const U32 normal = (body + 0xfffu + ((body >> 13) & 1u) - (112u << 23)) >> 13;
  const U32 subnormal = (U32)((F32)body + 0.5f) - 0x3f000000u;  // the sum's last bit is worth 2^-24: the adder rounds
  const U32 finite = body < 0x38800000u ? subnormal : normal;
  const U32 nan = ((body >> 13) & 0x3ffu) | 0x7e00u;
  const U32 special = body > 0x7f800000u ? nan : U32{} + 0x7c00u;
  const U32 half = (body >= 0x477ff000u ? special : finite) | ((bits >> 16) & 0x8000u);  // 65520 and up overflow
  return __builtin_convertvector(half, U16);
#endif
}

LIMBECK_INLINE Block<float> load(const Float16Bits* from, Whole) {
  Block<float> block;
  for (int k = 0; k < Block<float>::kParts; ++k) {
    U16 raw;
    __builtin_memcpy(&raw, from + k * Block<float>::kPerPart, sizeof(raw));
    block.part[k] = widen_float16(raw);
  }
  return block;
}

LIMBECK_INLINE void store(Float16Bits* to, const Block<float>& a, Whole) {
  for (int k = 0; k < Block<float>::kParts; ++k) {
    const U16 raw = narrow_to_float16(a.part[k]);
    __builtin_memcpy(to + k * Block<float>::kPerPart, &raw, sizeof(raw));
  }
}

template <class T>
LIMBECK_INLINE Block<Compute<T>> load(const T* from, Front front) {
  T padded[kLanes] = {};
  for (int j = 0; j < front.n; ++j) padded[j] = from[j];
  return load(padded, Whole{});
}

template <class T>
LIMBECK_INLINE void store(T* to, const Block<Compute<T>>& a, Front front) {
  T padded[kLanes];
  store(padded, a, Whole{});
  for (int j = 0; j < front.n; ++j) to[j] = padded[j];
}

// body(first index, Whole or Front, accumulator number) over [0, width). Four accumulators taken in turn hide the
// latency of the adder; which element goes to which depends on the width alone.
inline constexpr int kAccumulators = 4;
template <int number>
struct Accumulator {};

template <class Body>
LIMBECK_INLINE void for_blocks(int64_t width, Body body) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    body(i, Whole{}, Accumulator<0>{});
    body(i + kLanes, Whole{}, Accumulator<1>{});
    body(i + 2 * kLanes, Whole{}, Accumulator<2>{});
    body(i + 3 * kLanes, Whole{}, Accumulator<3>{});
  }
  for (; i + kLanes <= width; i += kLanes) body(i, Whole{}, Accumulator<0>{});
  if (i < width) body(i, Front{static_cast<int>(width - i)}, Accumulator<1>{});
}

template <class S>
struct Sum {
  Block<S> part[kAccumulators] = {Block<S>(0.0), Block<S>(0.0), Block<S>(0.0), Block<S>(0.0)};

  template <int number>
  LIMBECK_INLINE void add(Accumulator<number>, const Block<S>& value) {
    part[number] = part[number] + value;
  }
  LIMBECK_INLINE S total() const { return sum_of_lanes((part[0] + part[1]) + (part[2] + part[3])); }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
