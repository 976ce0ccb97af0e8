// Learned rounding on the CPU, scale by scale: which values a scale has, which codes it gives them, and what these
// stand for. Shared by what makes codes and what makes gradients.
#pragma once
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/task_grain.h"
#include "kernels/quantized/learned_operands.h"
#include "kernels/quantized/stored_parts.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {

inline constexpr size_t kLastLevel = kNf4Levels.size() - 1;

// The values of one scale, which lie side by side in W.
struct Run {
  int64_t begin, count;
};

class Runs {
 public:
  Runs(const QuantizedFormat& format, const at::Tensor& weight)
      : format_(format),
        columns_(weight.size(1)),
        values_(weight.numel()),
        groups_(format.has_groups() ? rounded_up_quotient(columns_, format.group()) : 1),
        count_(scale_count(format, weight.size(0), columns_)) {}

  int64_t count() const { return count_; }
  int64_t groups() const { return groups_; }
  Run at(int64_t i) const {
    if (format_.kind == CodeKind::kNf4) return {i * kNf4Block, std::min(kNf4Block, values_ - i * kNf4Block)};
    if (!format_.has_groups()) return {i * columns_, columns_};
    const int64_t first = i % groups_ * format_.group();
    return {i / groups_ * columns_ + first, std::min(format_.group(), columns_ - first)};
  }
  // Calls work(i, run) for each.
  template <class Work>
  void for_each(const Work& work) const {
    at::parallel_for(0, count_, items_per_task(values_ / std::max<int64_t>(1, count_)),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) work(i, at(i));
                     });
  }

 private:
  QuantizedFormat format_;
  int64_t columns_, values_, groups_, count_;
};

// `chosen`: codes are chosen by it; `value`: what they are multiplied with, which of nf4-double is another.
struct LearnedScale {
  float chosen, value, zero;
  float last;  // code of int8 and kInt4
  bool whole;  // block of nf4
};

// One a run; scales of int8 and int4 in the dtype.
std::vector<LearnedScale> learned_scales(const QuantizedFormat& format, const at::Tensor& range, const Runs& runs,
                                         at::ScalarType dtype);

template <CodeKind kind>
constexpr float least_code() {
  return kind == CodeKind::kInt8 ? -127.0F : 0.0F;
}
inline float most_code(const QuantizedFormat& format) {
  return format.kind == CodeKind::kInt8 ? 127.0F : static_cast<float>(format.last_code());
}
// Steps from 0 to the magnitude that a scale without zeros covers.
inline float steps_of_magnitude(const QuantizedFormat& format) {
  return format.kind == CodeKind::kInt8 ? 127.0F : most_code(format) / 2.0F;
}

// Of int8 and kInt4, before it is held at the ends.
inline float free_code(float w, float v, const LearnedScale& s) { return std::nearbyint(w / s.chosen + v) + s.zero; }

inline bool usable(const LearnedScale& s) { return s.chosen > 0 && std::isfinite(s.chosen); }

// The codes of a run, of int8 as signed bytes.
template <CodeKind kind>
void choose_codes(const float* w, const float* v, int64_t count, const LearnedScale& s, uint8_t* codes) {
  if constexpr (kind == CodeKind::kNf4) {
    static const auto middles = middles_of(kNf4Levels);
    const Scaled scaled(s.chosen, s.whole);
    std::array<float, kNf4Block> shares{};
    std::array<int32_t, kNf4Block> below{};
    for (int64_t i = 0; i < count; ++i) shares[static_cast<size_t>(i)] = scaled(w[i]);
    // A value goes up from the place in its interval where its offset makes one half of it.
    for (size_t level = 0; level < kLastLevel; ++level) {
      const float gap = kNf4Levels[level + 1] - kNf4Levels[level];
      for (int64_t i = 0; i < count; ++i)
        below[static_cast<size_t>(i)] += shares[static_cast<size_t>(i)] > middles[level] - v[i] * gap ? 1 : 0;
    }
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(below[static_cast<size_t>(i)]);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const float code = usable(s) ? std::clamp(free_code(w[i], v[i], s), least_code<kind>(), s.last) : s.zero;
      codes[i] = static_cast<uint8_t>(static_cast<int>(code));
    }
  }
}

template <CodeKind kind>
float value_by(uint8_t code, const LearnedScale& s) {
  const int number = kind == CodeKind::kInt8 ? static_cast<int8_t>(code) : code;
  return value_of<kind>(number, {s.value, s.zero}, kNf4Levels.data());
}

// Calls work with the loops of the kind.
template <template <CodeKind> class Loops, class Work>
void with_loops(CodeKind kind, const Work& work) {
  if (kind == CodeKind::kInt8) return work(Loops<CodeKind::kInt8>{});
  if (kind == CodeKind::kInt4) return work(Loops<CodeKind::kInt4>{});
  work(Loops<CodeKind::kNf4>{});
}

}  // namespace limbeck::kernels
