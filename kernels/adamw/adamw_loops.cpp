#include "kernels/adamw/adamw_loops.h"

#include "kernels/cpu/blocks.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

struct NoNarrow {};

template <class P, class S, class Extent>
LIMBECK_INLINE void put_narrow(P* to, int64_t i, const Block<S>& weight, Extent extent) {
  store(to + i, weight, extent);
}
template <class S, class Extent>
LIMBECK_INLINE void put_narrow(NoNarrow*, int64_t, const Block<S>&, Extent) {}

// G: the gradient's elements, P: those of the half parameter beside the master.
template <class G, class P>
LIMBECK_INLINE void step_elements(const AdamWFactors& f, const AdamWTensor& t, int64_t begin, int64_t end) {
  using S = Compute<G>;
  const AdamWVectors<Block<S>> factors(f);
  const G* gradient = static_cast<const G*>(t.gradient) + begin;
  S* weight = static_cast<S*>(t.weight) + begin;
  S* first = static_cast<S*>(t.first) + begin;
  S* second = static_cast<S*>(t.second) + begin;
  P* narrow = static_cast<P*>(t.narrow);
  for_blocks(end - begin, [&](int64_t i, auto extent, auto) {
    Block<S> w = load(weight + i, extent), m = load(first + i, extent), v = load(second + i, extent);
    adamw_update(factors, load(gradient + i, extent), w, m, v);
    store(weight + i, w, extent);
    store(first + i, m, extent);
    store(second + i, v, extent);
    put_narrow(narrow, begin + i, w, extent);
  });
}

void step(const AdamWArguments& a, const AdamWTensor& t, int64_t begin, int64_t end) {
  with_storage(a.gradient_storage, [&](auto tag) {
    using G = typename decltype(tag)::Type;
    if constexpr (sizeof(G) == sizeof(double)) {
      step_elements<G, NoNarrow>(a.factors, t, begin, end);
    } else {
      if (t.narrow == nullptr) return step_elements<G, NoNarrow>(a.factors, t, begin, end);
      if (a.narrow_storage == Storage::kBFloat16) return step_elements<G, BFloat16Bits>(a.factors, t, begin, end);
      step_elements<G, Float16Bits>(a.factors, t, begin, end);
    }
  });
}

// Elements too large for float32 squares, or not finite: once more in float64, which tells the two apart.
template <class T>
LIMBECK_INLINE double slow_square_sum(const T* x, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Block<Compute<T>> one = load(x + i, Front{1});
    const double value = static_cast<double>(one.part[0][0]);
    total += value * value;
  }
  return total;
}

template <class T>
LIMBECK_INLINE double run_square_sum(const T* x, int64_t count) {
  Sum<Compute<T>> sum;
  for_blocks(count, [&](int64_t i, auto extent, auto number) {
    const Block<Compute<T>> value = load(x + i, extent);
    sum.add(number, value * value);
  });
  const auto total = static_cast<double>(sum.total());
  const double zero_if_finite = total - total;
  return zero_if_finite == 0.0 ? total : slow_square_sum(x, count);
}

void square_sums(Storage storage, const void* x, int64_t count, double* totals, int64_t run_begin, int64_t run_end) {
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    for (int64_t run = run_begin; run < run_end; ++run) {
      const int64_t begin = run * kSquareRun, left = count - begin;
      totals[run] = run_square_sum(static_cast<const T*>(x) + begin, left < kSquareRun ? left : kSquareRun);
    }
  });
}

void accumulate(Storage storage, const void* x, void* sum, int64_t begin, int64_t end) {
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* from = static_cast<const T*>(x) + begin;
    auto* to = static_cast<Compute<T>*>(sum) + begin;
    for_blocks(end - begin, [&](int64_t i, auto extent, auto) {
      store(to + i, load(to + i, extent) + load(from + i, extent), extent);
    });
  });
}

}  // namespace

const AdamWLoops adamw_loops = {step, square_sums, accumulate};

}  // namespace limbeck::kernels::LIMBECK_ISA
