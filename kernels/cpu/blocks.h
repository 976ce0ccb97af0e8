// Sixteen values at a time, in one to four registers of simd.h: for the loops over elements and rows. The number of
// lanes is 16 on every machine, and products are fused with sums in exp_of_nonpositive and reciprocal_of_one_plus
// alone, so all else has the same bits on all instruction sets.
#pragma once
#include "kernels/cpu/elementary.h"

namespace limbeck::kernels::LIMBECK_ISA {

inline constexpr int kBlockLanes = 16;

template <class S>
struct Block {
  using Native = Vec<S>;
  static constexpr int kPerPart = kVectorBytes / static_cast<int>(sizeof(S));
  static constexpr int kParts = kBlockLanes / kPerPart;
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
  S lane[kBlockLanes];
  __builtin_memcpy(lane, a.part, sizeof(lane));
  for (int width = kBlockLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return lane[0];
}

// For NaN anything may come out: the gated formulas multiply by the NaN itself.
LIMBECK_INLINE Block<float> exp_of_nonpositive(Block<float> a) {
  for (int k = 0; k < Block<float>::kParts; ++k) {
    a.part[k] = a.part[k] < -87.0f ? F32{} : exp_within_bounds(a.part[k]);
  }
  return a;
}
LIMBECK_INLINE Block<double> exp_of_nonpositive(Block<double> a) {
  for (int k = 0; k < Block<double>::kParts; ++k) a.part[k] = exp_of_nonpositive(a.part[k]);
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

// ---- memory: widening loads and rounding stores ----

struct Whole {};  // all 16 lanes
struct Front {    // the first n lanes; the rest load as zero and are not stored
  int n;
};

template <class T>
LIMBECK_INLINE Block<Compute<T>> load(const T* from, Whole) {
  using S = Compute<T>;
  Block<S> block;
  for (int k = 0; k < Block<S>::kParts; ++k) block.part[k] = load_wide(from + k * Block<S>::kPerPart);
  return block;
}
template <class T>
LIMBECK_INLINE void store(T* to, const Block<Compute<T>>& a, Whole) {
  using S = Compute<T>;
  for (int k = 0; k < Block<S>::kParts; ++k) store_narrow(to + k * Block<S>::kPerPart, a.part[k]);
}
// A NaN needs no care here, which would cost a norm 15 % of its time: rounding could only carry one with all low 16
// bits set into the sign, and the NaNs that reach a bfloat16 result came from bfloat16 elements (low bits clear) or
// from the machine's own default.
LIMBECK_INLINE void store(BFloat16Bits* to, const Block<float>& a, Whole) {
  for (int k = 0; k < Block<float>::kParts; ++k) {
    const U16 raw = upper_halves(rounded_to_upper_half((U32)a.part[k]));
    __builtin_memcpy(to + k * Block<float>::kPerPart, &raw, sizeof(raw));
  }
}

template <class T>
LIMBECK_INLINE Block<Compute<T>> load(const T* from, Front front) {
  T padded[kBlockLanes] = {};
  for (int j = 0; j < front.n; ++j) padded[j] = from[j];
  return load(padded, Whole{});
}

template <class T>
LIMBECK_INLINE void store(T* to, const Block<Compute<T>>& a, Front front) {
  T padded[kBlockLanes];
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
  for (; i + 4 * kBlockLanes <= width; i += 4 * kBlockLanes) {
    body(i, Whole{}, Accumulator<0>{});
    body(i + kBlockLanes, Whole{}, Accumulator<1>{});
    body(i + 2 * kBlockLanes, Whole{}, Accumulator<2>{});
    body(i + 3 * kBlockLanes, Whole{}, Accumulator<3>{});
  }
  for (; i + kBlockLanes <= width; i += kBlockLanes) body(i, Whole{}, Accumulator<0>{});
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
