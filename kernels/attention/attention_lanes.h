// Ranges of indices and segments as masks of vectors, and reductions over a vector's lanes, for attention_loops.cpp.
#pragma once
#include <type_traits>

#include "kernels/cpu/simd.h"

namespace limbeck::kernels::LIMBECK_ISA {

template <class Acc>
using IntOf = std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t>;
template <class Acc>
using Ints = Vec<IntOf<Acc>>;

template <class Acc>
LIMBECK_INLINE Ints<Acc> load_ints(const int32_t* p) {
  typedef int32_t Narrow __attribute__((vector_size(kLanes<Acc> * 4)));
  Narrow v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Ints<Acc>);
}
template <class Acc>
LIMBECK_INLINE Ints<Acc> splat_int(int64_t x) {
  return splat(static_cast<IntOf<Acc>>(x));
}
template <class Acc>
LIMBECK_INLINE Ints<Acc> count_from(int64_t x) {
  Ints<Acc> v{};
  for (int64_t i = 0; i < kLanes<Acc>; ++i) v[i] = static_cast<int32_t>(i);
  return v + splat_int<Acc>(x);
}

template <class Acc>
LIMBECK_INLINE Acc largest(Vec<Acc> v) {
  Acc best = v[0];
  for (int64_t i = 1; i < kLanes<Acc>; ++i) best = v[i] > best ? v[i] : best;
  return best;
}
template <class Acc>
LIMBECK_INLINE Acc total(Vec<Acc> v) {
  Acc sum = v[0];
  for (int64_t i = 1; i < kLanes<Acc>; ++i) sum += v[i];
  return sum;
}

LIMBECK_INLINE float log_of(float x) { return __builtin_logf(x); }
LIMBECK_INLINE double log_of(double x) { return __builtin_log(x); }

}  // namespace limbeck::kernels::LIMBECK_ISA
