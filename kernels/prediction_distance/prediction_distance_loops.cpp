#include "kernels/prediction_distance/prediction_distance_loops.h"

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/near_zero.h"

namespace limbeck::kernels::LIMBECK_ISA {
namespace {

// From here on exp of a difference of logits in float32 would be off by more than 1e-6 of itself.
constexpr float kFarthest = 16.0f;

using Floats = Block<float>;
using Doubles = Block<double>;

LIMBECK_INLINE bool is_finite(double x) { return x - x == 0.0; }

// One register of floats is two of doubles. GCC 12 splits __builtin_convertvector into halves; the plain forms of
// these trip a false -Wuninitialized in it.
LIMBECK_INLINE void widen(F32 a, F64* front, F64* back) {
#if defined(__AVX512F__)
  *front = (F64)_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, (__m512)a, 0));
  *back = (F64)_mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, (__m512)a, 1));
#elif defined(__AVX2__)
  *front = (F64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a));
  *back = (F64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a, 1));
#else
  for (int64_t j = 0; j < kLanes<double>; ++j) {
    (*front)[j] = static_cast<double>(a[j]);
    (*back)[j] = static_cast<double>(a[j + kLanes<double>]);
  }
#endif
}
LIMBECK_INLINE F32 narrow(F64 front, F64 back) {
#if defined(__AVX512F__)
  const __m256 low = _mm512_maskz_cvtpd_ps(0xff, (__m512d)front), high = _mm512_maskz_cvtpd_ps(0xff, (__m512d)back);
  return (F32)_mm512_maskz_insertf32x8(0xffff, _mm512_maskz_broadcast_f32x8(0xffff, low), high, 1);
#elif defined(__AVX2__)
  return (F32)_mm256_set_m128(_mm256_cvtpd_ps((__m256d)back), _mm256_cvtpd_ps((__m256d)front));
#else
  F32 both;
  for (int64_t j = 0; j < kLanes<double>; ++j) {
    both[j] = static_cast<float>(front[j]);
    both[j + kLanes<double>] = static_cast<float>(back[j]);
  }
  return both;
#endif
}

LIMBECK_INLINE Doubles widened(const Floats& a) {
  Doubles wide;
  for (int k = 0; k < Floats::kParts; ++k) widen(a.part[k], &wide.part[2 * k], &wide.part[2 * k + 1]);
  return wide;
}
LIMBECK_INLINE Floats narrowed(const Doubles& a) {
  Floats shorter;
  for (int k = 0; k < Floats::kParts; ++k) shorter.part[k] = narrow(a.part[2 * k], a.part[2 * k + 1]);
  return shorter;
}

// What stands behind the end of a row becomes 0.
LIMBECK_INLINE Floats within(const Floats& a, Whole) { return a; }
LIMBECK_INLINE Floats within(const Floats& a, Front front) {
  float lane[kBlockLanes];
  store(lane, a, Whole{});
  return load(lane, front);
}

LIMBECK_INLINE Floats greatest(Floats a, const Floats& b) {
  for (int k = 0; k < Floats::kParts; ++k) a.part[k] = b.part[k] > a.part[k] ? b.part[k] : a.part[k];
  return a;
}
LIMBECK_INLINE float greatest_lane(const Floats& a) {
  float lane[kBlockLanes];
  store(lane, a, Whole{});
  float most = lane[0];
  for (int j = 1; j < kBlockLanes; ++j) most = lane[j] > most ? lane[j] : most;
  return most;
}

// A NaN stays one, unlike that of blocks.h.
LIMBECK_INLINE Floats exponential_at_most_one(Floats a) {
  for (int k = 0; k < Floats::kParts; ++k) a.part[k] = exp_of_nonpositive(a.part[k]);
  return a;
}

// exp(x) - 1 - x of |x| <= kFarthest, never negative.
LIMBECK_INLINE F32 exponential_excess(F32 x) {
  const F32 near = x * x * exponential_rest(x), size = absolute(x);
  if (!any_lane(size > 0.5f)) return near;
  return size > 0.5f ? exp_within_bounds(size <= kFarthest ? x : F32{}) - 1.0f - x : near;
}

// ---- in float64, element by element: of what float32 does not hold ----

template <class T>
LIMBECK_INLINE double log_sum_in_doubles(const T* row, int64_t width) {
  double most = -__builtin_inf(), sum = 0;
  for (int64_t i = 0; i < width; ++i) most = static_cast<double>(row[i]) > most ? static_cast<double>(row[i]) : most;
  const double shift = is_finite(most) ? most : 0.0;
  for (int64_t i = 0; i < width; ++i) sum += __builtin_exp(static_cast<double>(row[i]) - shift);
  return __builtin_log(sum) + shift;
}

// With a sum of its own over the reference: one that is as good as float32's exp would be all of a small KL.
template <class T>
LIMBECK_INLINE DistanceRow distances_in_doubles(const T* row, const T* reference, int64_t width) {
  const double of_reference = log_sum_in_doubles(reference, width);
  DistanceRow all{log_sum_in_doubles(row, width), 0, 0};
  double mean = 0;
  for (int64_t i = 0; i < width; ++i) {
    const double other = static_cast<double>(reference[i]), more = static_cast<double>(row[i]) - other;
    mean += __builtin_exp(other - of_reference) * more;
    all.squares += more * more;
  }
  all.kl = all.log_sum - of_reference - mean;
  return all;
}

// ---- with exp in float32, and sums in float64 ----

LIMBECK_INLINE double log_sum_of(const float* row, int64_t width) {
  float shift = -__builtin_inff();
  Floats most(shift);
  const int64_t whole = width / kBlockLanes * kBlockLanes;
  for_blocks(whole, [&](int64_t i, auto extent, auto) { most = greatest(most, load(row + i, extent)); });
  for (int64_t i = whole; i < width; ++i) shift = row[i] > shift ? row[i] : shift;
  shift = greatest_lane(greatest(most, Floats(static_cast<double>(shift))));
  const Floats shifts(static_cast<double>(shift));
  Doubles sum(0.0);
  for_blocks(width, [&](int64_t i, auto extent, auto) {
    sum = sum + widened(within(exponential_at_most_one(load(row + i, extent) - shifts), extent));
  });
  const double total = sum_of_lanes(sum);
  return is_finite(total) ? __builtin_log(total) + static_cast<double>(shift) : log_sum_in_doubles(row, width);
}

// KL(p || q) is the logarithm of the mean of exp(d - mean of d), both means under p and d what the logits grow by: the
// mean of exp(x) - 1 - x, which is never negative, says it without cancellation.
LIMBECK_INLINE DistanceRow distances_of(const float* row, const float* reference, double of_reference, int64_t width,
                                        float* p_room) {
  const Floats top(of_reference);
  Doubles mass(0.0), moved(0.0), squares(0.0), excess(0.0);
  for_blocks(width, [&](int64_t i, auto extent, auto) {
    const Floats other = load(reference + i, extent);
    const Floats p = within(exponential_at_most_one(other - top), extent);
    store(p_room + i, p, extent);
    const Doubles d = widened(load(row + i, extent)) - widened(other), weight = widened(p);
    mass = mass + weight;
    moved = moved + weight * d;
    squares = squares + d * d;
  });
  const double all = sum_of_lanes(mass), mean = sum_of_lanes(moved) / all, sum = sum_of_lanes(squares);
  if (!is_finite(mean) || !is_finite(sum)) return distances_in_doubles(row, reference, width);
  const Doubles center(mean);
  Floats farthest(0.0);
  for_blocks(width, [&](int64_t i, auto extent, auto) {
    Floats rest =
        within(narrowed(widened(load(row + i, extent)) - widened(load(reference + i, extent)) - center), extent);
    for (int k = 0; k < Floats::kParts; ++k) {
      const F32 size = absolute(rest.part[k]);
      farthest.part[k] = size > farthest.part[k] ? size : farthest.part[k];
      rest.part[k] = exponential_excess(rest.part[k]);
    }
    excess = excess + widened(load(p_room + i, extent) * rest);
  });
  if (greatest_lane(farthest) > kFarthest) return distances_in_doubles(row, reference, width);
  const double kl = __builtin_log1p(sum_of_lanes(excess) / all);
  return {of_reference + mean + kl, kl, sum};
}
// The row as numbers of that type: itself, or written into the room.
template <class S>
LIMBECK_INLINE const S* row_as(Storage storage, const void* row, int64_t width, S* room) {
  const S* found = room;
  with_storage(storage, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const T* from = static_cast<const T*>(row);
    if constexpr (__is_same(T, S)) {
      found = from;
    } else {
      for_blocks(width, [&](int64_t i, auto extent, auto) {
        if constexpr (__is_same(Compute<T>, S)) {
          store(room + i, load(from + i, extent), extent);
        } else if constexpr (__is_same(S, double)) {
          store(room + i, widened(load(from + i, extent)), extent);
        }  // no float64 is asked for as float32
      });
    }
  });
  return found;
}

double log_sum(Storage storage, const void* logits, int64_t width, float* room) {
  if (storage == Storage::kFloat64) return log_sum_in_doubles(static_cast<const double*>(logits), width);
  return log_sum_of(row_as(storage, logits, width, room), width);
}

DistanceRow distances(const DistanceOperand& logits, const DistanceOperand& reference, double of_reference,
                      int64_t width, float* room, double* wide_room) {
  if (wide_room == nullptr) {
    return distances_of(row_as(logits.storage, logits.row, width, room),
                        row_as(reference.storage, reference.row, width, room + width), of_reference, width,
                        room + 2 * width);
  }
  return distances_in_doubles(row_as(logits.storage, logits.row, width, wide_room),
                              row_as(reference.storage, reference.row, width, wide_room + width), width);
}

}  // namespace

const DistanceLoops distance_loops = {log_sum, distances};

}  // namespace limbeck::kernels::LIMBECK_ISA
