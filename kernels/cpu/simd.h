// Vectors of one register, for what is built once for each instruction set: *_loops.cpp and the headers they include
// (LIMBECK_ISA names the namespace). Include nothing in them that could emit a shared inline function: the linker would
// keep one copy for all, perhaps the AVX-512 one (the test loops_share_no_function looks for such). Products are fused
// with sums by fused() alone, so that a formula has the same bits wherever it stands.
#pragma once
#include "kernels/operator/storage.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace limbeck::kernels::LIMBECK_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::Type;
using F32 = Vec<float>;
using F64 = Vec<double>;
using I32 = Vec<int32_t>;
using U32 = Vec<uint32_t>;
typedef uint16_t U16 __attribute__((vector_size(kVectorBytes / 2)));

template <class T>
inline constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <class T>
LIMBECK_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
LIMBECK_INLINE void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}
template <class T>
LIMBECK_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}

// a * b + c, with one rounding where the processor can.
LIMBECK_INLINE F32 fused(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
LIMBECK_INLINE F64 fused(F64 a, F64 b, F64 c) {
#if defined(__AVX512F__)
  return (F64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (F64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// ---- 16-bit storage: to nearest even, a NaN stays a NaN ------------------------------------------------------------

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

LIMBECK_INLINE F32 widen_bfloat16(U16 raw) { return (F32)(widen(raw) << 16); }
LIMBECK_INLINE U16 narrow_to_bfloat16(F32 value) {
  const U32 rounded = rounded_to_upper_half((U32)value);  // could carry a NaN into the sign
  return upper_halves(value != value ? U32{} + 0x7fc00000u : rounded);
}

// As a bfloat16 has it, but wide.
LIMBECK_INLINE F32 rounded_to_bfloat16(F32 value) {
  return (F32)(value != value ? (U32)value : rounded_to_upper_half((U32)value) & 0xffff0000u);
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

// ---- memory: widening loads and rounding stores
// ------------------------------------------------------------------------

LIMBECK_INLINE F32 load_wide(const float* from) { return load(from); }
LIMBECK_INLINE F64 load_wide(const double* from) { return load(from); }
LIMBECK_INLINE F32 load_wide(const BFloat16Bits* from) {
  U16 raw;
  __builtin_memcpy(&raw, from, sizeof raw);
  return widen_bfloat16(raw);
}
LIMBECK_INLINE F32 load_wide(const Float16Bits* from) {
  U16 raw;
  __builtin_memcpy(&raw, from, sizeof raw);
  return widen_float16(raw);
}

LIMBECK_INLINE void store_narrow(float* to, F32 v) { store(to, v); }
LIMBECK_INLINE void store_narrow(double* to, F64 v) { store(to, v); }
LIMBECK_INLINE void store_narrow(BFloat16Bits* to, F32 v) {
  const U16 raw = narrow_to_bfloat16(v);
  __builtin_memcpy(to, &raw, sizeof raw);
}
LIMBECK_INLINE void store_narrow(Float16Bits* to, F32 v) {
  const U16 raw = narrow_to_float16(v);
  __builtin_memcpy(to, &raw, sizeof raw);
}

// The first `n` elements, zeros behind them; never touches what is past the end.
template <class T>
LIMBECK_INLINE Vec<Compute<T>> load_wide_some(const T* from, int64_t n) {
  constexpr int64_t lanes = kLanes<Compute<T>>;
  if (n >= lanes) return load_wide(from);
  alignas(64) T whole[lanes] = {};
  for (int64_t i = 0; i < n; ++i) whole[i] = from[i];
  return load_wide(whole);
}
template <class T>
LIMBECK_INLINE void store_narrow_some(T* to, Vec<Compute<T>> v, int64_t n) {
  constexpr int64_t lanes = kLanes<Compute<T>>;
  if (n >= lanes) return store_narrow(to, v);
  alignas(64) T whole[lanes];
  store_narrow(whole, v);
  for (int64_t i = 0; i < n; ++i) to[i] = whole[i];
}

}  // namespace limbeck::kernels::LIMBECK_ISA
