// One position of the resolvent's recurrences, for one chain or sixteen side by side: what a position brings to its
// step, and the step, which is resolvent_formula.h's. Included by resolvent_loops.cpp alone, in each instruction set's
// namespace.
#pragma once
#include "kernels/cpu/blocks.h"
#include "kernels/resolvent/resolvent_loops.h"

namespace limbeck::kernels::LIMBECK_ISA {

static_assert(kSegmentLanes == kBlockLanes);
using Lanes = Block<double>;
constexpr int64_t kTile = 32;  // positions of sixteen segments that are brought side by side in the nearest cache
static_assert(kWarmUp % kTile == 0);

template <class Body>
LIMBECK_INLINE void with_float_storage(Storage storage, Body body) {
  storage == Storage::kFloat64 ? body(StorageTag<double>{}) : body(StorageTag<float>{});
}

// Of sixteen chains what resolvent_formula.h has of one.
LIMBECK_INLINE Lanes over_coupling(const Lanes& p, Lanes value) {
  for (int k = 0; k < Lanes::kParts; ++k) value.part[k] = p.part[k] != F64{} ? value.part[k] : F64{};
  return value;
}

LIMBECK_INLINE Lanes where_below(const Lanes& size, double limit, double then, Lanes otherwise) {
  const F64 bound = splat(limit), value = splat(then);
  for (int k = 0; k < Lanes::kParts; ++k) otherwise.part[k] = size.part[k] < bound ? value : otherwise.part[k];
  return otherwise;
}

// Asks for what stands a tile further along: sixteen streams of a few lines each are more than processors foresee.
template <class T>
LIMBECK_INLINE void ask_ahead(const T* row, int64_t first, int64_t by, bool written = false) {
  constexpr int64_t kPerLine = 64 / static_cast<int64_t>(sizeof(T));
  const T* ahead = row + first + by * kTile;
  for (int64_t at = 0; at < kTile; at += kPerLine) {
    if (written) {
      __builtin_prefetch(ahead + by * at, 1);
    } else {
      __builtin_prefetch(ahead + by * at, 0);
    }
  }
}

// Whether a whole tile follows the one at `along`.
LIMBECK_INLINE bool has_ahead(int64_t along, int64_t n) { return along + 2 * kTile <= n; }

// `count` couplings to what the sweep comes from, `apart` from each other, from position `along` of its order.
template <class T>
LIMBECK_INLINE void stage_couplings(const Tridiagonals& m, bool from_right, int64_t row, int64_t along, int64_t count,
                                    double* to, int64_t apart) {
  const int64_t first = from_right ? m.n - along : along, by = from_right ? -1 : 1;
  if (m.documents != nullptr) {
    for (int64_t t = 0; t < count; ++t) to[t * apart] = coupling<T>(m, row, first + by * t);
    return;
  }
  const int64_t shift = m.state != nullptr ? 0 : -1;
  const T *b = static_cast<const T*>(m.b) + row * m.b_row, *c = static_cast<const T*>(m.c) + row * m.c_row;
  int64_t t = 0;
  if (along == 0 && m.state == nullptr) to[t++] = 0.0;
  for (; t < count; ++t) {
    const int64_t at = first + by * t + shift;
    to[t * apart] = static_cast<double>(b[at]) * static_cast<double>(c[at]);
  }
}

// ---- the two recurrences: what positions bring, and the step over one -----------------------------------------------
// v[0, kOperands) change from position to position, v[kOperands, kOperands + kConstants) from row to row.

template <class T>
struct GreenStep {
  static constexpr int kOperands = 2, kConstants = 1;
  const Tridiagonals& m;
  const ResolventSweep& sweep;

  // Operand k of position along + t goes to to[(t kOperands + k) lanes].
  LIMBECK_INLINE void stage(int64_t row, int64_t along, int64_t count, double* to, int64_t lanes) const {
    const T* a = static_cast<const T*>(m.a) + row * m.a_row + (sweep.from_right ? m.n - 1 - along : along);
    const int64_t by = sweep.from_right ? -1 : 1, apart = kOperands * lanes;
    const double re = m.z[2 * row];
    if (has_ahead(along, m.n)) {
      ask_ahead(a, 0, by);
      ask_ahead(static_cast<const T*>(m.b) + row * m.b_row, sweep.from_right ? m.n - 1 - along : along, by);
      ask_ahead(static_cast<const T*>(m.c) + row * m.c_row, sweep.from_right ? m.n - 1 - along : along, by);
    }
    for (int64_t t = 0; t < count; ++t) to[t * apart] = static_cast<double>(a[by * t]) - re;
    stage_couplings<T>(m, sweep.from_right, row, along, count, to + lanes, apart);
  }
  LIMBECK_INLINE void constants(int64_t row, double* to, int64_t) const { *to = m.z[2 * row + 1]; }
  LIMBECK_INLINE Complex<double> initial(int64_t row) const {
    return m.state != nullptr ? pair_at(m.state, row) : Complex<double>{0.0, 0.0};
  }
  template <class Number>
  static LIMBECK_INLINE Complex<Number> step(const Number* v, const Complex<Number>& before) {
    return green_step(v[0], v[1], v[2], before);
  }
};

template <class T>
struct SumStep {
  static constexpr int kOperands = 5, kConstants = 0;
  const Tridiagonals& m;
  const ResolventSweep& sweep;

  LIMBECK_INLINE void stage(int64_t row, int64_t along, int64_t count, double* to, int64_t lanes) const {
    const int64_t first = row * m.n + (sweep.from_right ? m.n - 1 - along : along);
    const int64_t by = sweep.from_right ? -1 : 1, apart = kOperands * lanes;
    if (has_ahead(along, m.n)) {
      ask_ahead(reinterpret_cast<const Complex<double>*>(sweep.source), first, by);
      ask_ahead(reinterpret_cast<const Complex<double>*>(sweep.green), first, by);
    }
    for (int64_t t = 0; t < count; ++t) {
      const Complex<double> source = pair_at(sweep.source, first + by * t),
                            green = pair_at(sweep.green, first + by * t);
      double* one = to + t * apart;
      one[0] = source.re;
      one[lanes] = source.im;
      one[3 * lanes] = green.re;
      one[4 * lanes] = green.im;
    }
    stage_couplings<T>(m, sweep.from_right, row, along, count, to + 2 * lanes, apart);
  }
  LIMBECK_INLINE void constants(int64_t, double*, int64_t) const {}
  LIMBECK_INLINE Complex<double> initial(int64_t) const { return {0.0, 0.0}; }
  template <class Number>
  static LIMBECK_INLINE Complex<Number> step(const Number* v, const Complex<Number>& before) {
    return sum_step<Number>({v[0], v[1]}, v[2], {v[3], v[4]}, before);
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
