// One position of the resolvent's recurrences, for one chain or sixteen side by side: complex numbers, what a position
// brings to its step, and the step. Included by resolvent_loops.cpp alone, in each instruction set's namespace.
#pragma once
#include "kernels/cpu/blocks.h"
#include "kernels/resolvent/resolvent_loops.h"

namespace limbeck::kernels::LIMBECK_ISA {

static_assert(kSegmentLanes == kBlockLanes);
using Lanes = Block<double>;
constexpr int64_t kTile = 32;  // positions of sixteen segments that are brought side by side in the nearest cache
static_assert(kWarmUp % kTile == 0);

// A number of one chain (double) or of sixteen (Lanes): the same operations, so the same bits.
template <class Number>
struct Complex {
  Number re, im;
};

template <class Body>
LIMBECK_INLINE void with_float_storage(Storage storage, Body body) {
  storage == Storage::kFloat64 ? body(StorageTag<double>{}) : body(StorageTag<float>{});
}

// What neighbours hand over; nothing across p = 0, not even a NaN or a sign of zero, so that a document is alone.
LIMBECK_INLINE double over_coupling(double p, double value) { return p != 0.0 ? value : 0.0; }
LIMBECK_INLINE Lanes over_coupling(const Lanes& p, Lanes value) {
  for (int k = 0; k < Lanes::kParts; ++k) value.part[k] = p.part[k] != F64{} ? value.part[k] : F64{};
  return value;
}

// limit > size ? then : otherwise; of a NaN size `otherwise`.
LIMBECK_INLINE double where_below(double size, double limit, double then, double otherwise) {
  return size < limit ? then : otherwise;
}
LIMBECK_INLINE Lanes where_below(const Lanes& size, double limit, double then, Lanes otherwise) {
  const F64 bound = splat(limit), value = splat(then);
  for (int k = 0; k < Lanes::kParts; ++k) otherwise.part[k] = size.part[k] < bound ? value : otherwise.part[k];
  return otherwise;
}

// 1 / d. Where b c < 0 a leading matrix may be singular at z, and d zero while the whole has an inverse: 2^-400 in its
// place leaves in what follows 1 / (x - p 2^400) = 0 to the last bit, which is the limit, and its square has a number.
template <class Number>
LIMBECK_INLINE Complex<Number> inverse(Complex<Number> d) {
  constexpr double kLeast = 0x1p-800, kRoot = 0x1p-400;
  const Number size = d.re * d.re + d.im * d.im;
  d.re = where_below(size, kLeast, kRoot, d.re);
  d.im = where_below(size, kLeast, 0.0, d.im);
  const Number scale = Number(1.0) / where_below(size, kLeast, kLeast, size);
  return {d.re * scale, -d.im * scale};
}

LIMBECK_INLINE Complex<double> pair_at(const double* pairs, int64_t index) {
  return {pairs[2 * index], pairs[2 * index + 1]};
}
template <class T>
LIMBECK_INLINE void put_pair(T* pairs, int64_t index, Complex<double> value) {
  pairs[2 * index] = static_cast<T>(value.re);
  pairs[2 * index + 1] = static_cast<T>(value.im);
}

// b c of positions i - 1 and i, for 0 <= i <= n.
template <class T>
LIMBECK_INLINE double coupling(const Tridiagonals& m, int64_t row, int64_t i) {
  const int64_t at = m.state != nullptr ? i : i - 1;
  if (at < 0 || i == m.n) return 0.0;
  if (m.documents != nullptr && i > 0) {
    const int64_t* document = m.documents + row * m.documents_row;
    if (document[i] != document[i - 1]) return 0.0;
  }
  return static_cast<double>(static_cast<const T*>(m.b)[row * m.b_row + at]) *
         static_cast<double>(static_cast<const T*>(m.c)[row * m.c_row + at]);
}

template <class T>
LIMBECK_INLINE double real_diagonal(const Tridiagonals& m, int64_t row, int64_t i) {
  return static_cast<double>(static_cast<const T*>(m.a)[row * m.a_row + i]) - m.z[2 * row];
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
    const Number &p = v[1], &height = v[2];
    return inverse<Number>({v[0] - over_coupling(p, p * before.re), -height - over_coupling(p, p * before.im)});
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
    const Number &p = v[2], &re = v[3], &im = v[4];
    const Number factor_re = p * (re * re - im * im), half_im = p * (re * im);
    const Number factor_im = half_im + half_im;
    return {v[0] + over_coupling(p, factor_re * before.re - factor_im * before.im),
            v[1] + over_coupling(p, factor_re * before.im + factor_im * before.re)};
  }
};

}  // namespace limbeck::kernels::LIMBECK_ISA
