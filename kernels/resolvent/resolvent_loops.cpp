#include "kernels/resolvent/resolvent_loops.h"

#include "kernels/resolvent/resolvent_steps.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

// ---- sixteen segments side by side ---------------------------------------------------------------------------------

struct Lane {
  int64_t row, begin, end;  // positions in the order of the sweep
};

LIMBECK_INLINE Lane lane_of(const RowSegments& segments, int64_t segment, int64_t n) {
  const int64_t row = segment / segments.per_row, begin = segment % segments.per_row * segments.length;
  const int64_t end = begin + segments.length;
  return {row, begin, end < n ? end : n};
}

LIMBECK_INLINE int64_t position(bool from_right, int64_t n, int64_t along) {
  return from_right ? n - 1 - along : along;
}

// Segments that begin their row start from what the row starts from; all write down what they start from.
template <class Step>
LIMBECK_INLINE void enter(const Step& step, const RowSegments& segments, int64_t first, int64_t lanes,
                          Complex<Lanes>& state) {
  double re[kBlockLanes], im[kBlockLanes];
  store(re, state.re, Whole{});
  store(im, state.im, Whole{});
  for (int64_t j = 0; j < lanes; ++j) {
    const Lane lane = lane_of(segments, first + j, step.m.n);
    if (lane.begin == 0) {
      const Complex<double> initial = step.initial(lane.row);
      re[j] = initial.re;
      im[j] = initial.im;
    }
    put_pair(step.sweep.entries, first + j, {re[j], im[j]});
  }
  state = {load(re, Whole{}), load(im, Whole{})};
}

template <class T, class Step>
LIMBECK_INLINE void write(const Step& step, int64_t index, Complex<double> state) {
  put_pair(step.sweep.states, index, state);
  if (step.sweep.out != nullptr) put_pair(static_cast<T*>(step.sweep.out), index, state);
}

// `count` results of a lane, two rows of lanes apart.
template <class T, class Step>
LIMBECK_INLINE void write_back(const Step& step, int64_t row, int64_t along, int64_t count, const double* from) {
  const int64_t first = row * step.m.n + position(step.sweep.from_right, step.m.n, along);
  const int64_t by = step.sweep.from_right ? -1 : 1;
  if (has_ahead(along, step.m.n)) {
    ask_ahead(reinterpret_cast<const Complex<double>*>(step.sweep.states), first, by, true);
    if (step.sweep.out != nullptr) ask_ahead(static_cast<const Complex<T>*>(step.sweep.out), first, by, true);
  }
  for (int64_t t = 0; t < count; ++t, from += 2 * kBlockLanes) {
    write<T>(step, first + by * t, {from[0], from[kBlockLanes]});
  }
}

template <class T, class Step>
LIMBECK_INLINE void sweep_group(const Step& step, const RowSegments& segments, int64_t group) {
  constexpr int kOperands = Step::kOperands, kAll = kOperands + Step::kConstants;
  alignas(64) double operands[kTile * kOperands * kBlockLanes];
  alignas(64) double constants[(Step::kConstants + 1) * kBlockLanes];
  alignas(64) double results[kTile * 2 * kBlockLanes];
  const int64_t first = group * kBlockLanes, all = segments.rows * segments.per_row, n = step.m.n;
  const int64_t lanes = all - first < kBlockLanes ? all - first : kBlockLanes;
  for (double& operand : operands) operand = 1.0;  // lanes without a segment, or behind its end, compute too
  for (double& constant : constants) constant = 1.0;
  for (int64_t j = 0; j < lanes; ++j) {
    step.constants(lane_of(segments, first + j, n).row, constants + j, kBlockLanes);
  }
  Complex<Lanes> state{Lanes(0.0), Lanes(0.0)};
  for (int64_t at = segments.per_row == 1 ? 0 : -kWarmUp; at < segments.length; at += kTile) {
    if (at == 0) enter(step, segments, first, lanes, state);
    const int64_t count = segments.length - at < kTile ? segments.length - at : kTile;
    const auto count_of = [&](const Lane& lane) {
      const int64_t left = lane.end - lane.begin - at;
      return lane.begin + at < 0 || left < 0 ? 0 : left < count ? left : count;
    };
    for (int64_t j = 0; j < lanes; ++j) {
      const Lane lane = lane_of(segments, first + j, n);
      if (const int64_t some = count_of(lane); some > 0) {
        step.stage(lane.row, lane.begin + at, some, operands + j, kBlockLanes);
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      Lanes v[kAll];
      for (int k = 0; k < kOperands; ++k) v[k] = load(operands + (t * kOperands + k) * kBlockLanes, Whole{});
      for (int k = kOperands; k < kAll; ++k) v[k] = load(constants + (k - kOperands) * kBlockLanes, Whole{});
      state = Step::step(v, state);
      store(results + 2 * t * kBlockLanes, state.re, Whole{});
      store(results + (2 * t + 1) * kBlockLanes, state.im, Whole{});
    }
    if (at < 0) continue;
    for (int64_t j = 0; j < lanes; ++j) {
      const Lane lane = lane_of(segments, first + j, n);
      write_back<T>(step, lane.row, lane.begin + at, count_of(lane), results + j);
    }
  }
}

LIMBECK_INLINE bool same_bits(Complex<double> a, Complex<double> b) { return __builtin_memcmp(&a, &b, sizeof(a)) == 0; }

template <class T, class Step>
LIMBECK_INLINE int64_t repair_row(const Step& step, const RowSegments& segments, int64_t row) {
  constexpr int kOperands = Step::kOperands, kAll = kOperands + Step::kConstants;
  const int64_t n = step.m.n;
  double operands[kTile * kOperands];
  int64_t again = 0;
  for (int64_t k = 1; k < segments.per_row && k * segments.length < n; ++k) {
    const int64_t segment = row * segments.per_row + k;
    const Lane lane = lane_of(segments, segment, n);
    Complex<double> state = pair_at(step.sweep.states, row * n + position(step.sweep.from_right, n, lane.begin - 1));
    if (same_bits(state, pair_at(step.sweep.entries, segment))) continue;
    double v[kAll];
    step.constants(row, v + kOperands, 1);
    bool met = false;
    for (int64_t along = lane.begin; along < lane.end && !met; along += kTile) {
      const int64_t count = lane.end - along < kTile ? lane.end - along : kTile;
      step.stage(row, along, count, operands, 1);
      for (int64_t t = 0; t < count && !met; ++t, ++again) {
        const int64_t index = row * n + position(step.sweep.from_right, n, along + t);
        for (int j = 0; j < kOperands; ++j) v[j] = operands[t * kOperands + j];
        state = Step::template step<double>(v, state);
        met = same_bits(state, pair_at(step.sweep.states, index));
        if (!met) write<T>(step, index, state);
      }
    }
  }
  return again;
}

template <class Body>
LIMBECK_INLINE void with_step(Storage storage, const Tridiagonals& m, const ResolventSweep& sweep, Body body) {
  with_float_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    sweep.green == nullptr ? body(tag, GreenStep<T>{m, sweep}) : body(tag, SumStep<T>{m, sweep});
  });
}

void sweep(Storage storage, const Tridiagonals& m, const RowSegments& segments, const ResolventSweep& one,
           int64_t begin, int64_t end) {
  with_step(storage, m, one, [&](auto tag, const auto& step) {
    for (int64_t group = begin; group < end; ++group) {
      sweep_group<typename decltype(tag)::Type>(step, segments, group);
    }
  });
}

int64_t repair(Storage storage, const Tridiagonals& m, const RowSegments& segments, const ResolventSweep& one,
               int64_t row) {
  int64_t again = 0;
  with_step(storage, m, one,
            [&](auto tag, const auto& step) { again = repair_row<typename decltype(tag)::Type>(step, segments, row); });
  return again;
}

// ---- position by position ------------------------------------------------------------------------------------------

void diagonal(Storage storage, const Tridiagonals& m, const double* left, const double* right, void* out, int64_t row,
              int64_t begin, int64_t end) {
  with_float_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    T* to = static_cast<T*>(out) + 2 * row * m.n;
    const double *from_left = row_of(left, row, m.n), *from_right = row_of(right, row, m.n);
    for (int64_t i = begin; i < end; ++i) put_pair(to, i, diagonal_at<T>(m, from_left, from_right, row, i));
  });
}

void gradient_source(Storage storage, const Tridiagonals& m, const ResolventGradients& g, int64_t row, int64_t begin,
                     int64_t end) {
  with_float_storage(storage, [&](auto tag) {
    for (int64_t i = begin; i < end; ++i) put_gradient_source<typename decltype(tag)::Type>(m, g, row, i);
  });
}

void gradients(Storage storage, const Tridiagonals& m, const ResolventGradients& g, int64_t row, int64_t begin,
               int64_t end) {
  with_float_storage(storage, [&](auto tag) {
    Complex<double> sum{0.0, 0.0};
    for (int64_t i = begin; i < end; ++i) {
      const Complex<double> whole = put_gradients<typename decltype(tag)::Type>(m, g, row, i);
      sum = {sum.re + whole.re, sum.im + whole.im};
    }
    const int64_t runs = (m.n + kGradientRun - 1) / kGradientRun;
    put_pair(g.partial_z, row * runs + begin / kGradientRun, {sum.re, -sum.im});
  });
}

}  // namespace

const ResolventLoops resolvent_loops = {sweep, repair, diagonal, gradient_source, gradients};

}  // namespace limbeck::kernels::LIMBECK_ISA
