#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/task_grain.h"
#include "kernels/quantized/learned_operands.h"
#include "kernels/quantized/stored_parts.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {
namespace {

constexpr size_t kLastLevel = kNf4Levels.size() - 1;
constexpr float kRoomToEdge = 0.48F;  // of a step: how far from its code a moved value may lie

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
        groups_(format.kind == CodeKind::kInt4 ? rounded_up_quotient(columns_, format.group()) : 1),
        count_(scale_count(format, weight.size(0), columns_)) {}

  int64_t count() const { return count_; }
  int64_t groups() const { return groups_; }
  Run at(int64_t i) const {
    if (format_.kind == CodeKind::kInt8) return {i * columns_, columns_};
    if (format_.kind == CodeKind::kNf4) return {i * kNf4Block, std::min(kNf4Block, values_ - i * kNf4Block)};
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
  bool whole;  // block of nf4
};

float stored_up(float exact, at::ScalarType dtype) {
  if (dtype == at::kBFloat16) return static_cast<float>(rounded_up<c10::BFloat16>(exact));
  if (dtype == at::kHalf) return static_cast<float>(rounded_up<c10::Half>(exact));
  return exact;
}

float exact_scale(const QuantizedFormat& format, const float* range, int64_t i, int64_t count) {
  if (format.kind == CodeKind::kInt8) return range[i] / 127.0F;
  return format.has_zeros ? (range[count + i] - range[i]) / 15.0F : range[i] / 7.5F;
}

std::vector<at::Tensor> double_scales(const at::Tensor& range) {
  const int64_t blocks = range.size(1);
  std::vector<at::Tensor> parts = {{},
                                   at::empty({blocks}, range.options().dtype(at::kByte)),
                                   at::empty({rounded_up_quotient(blocks, kScaleBlock)}, range.options()),
                                   at::empty({1}, range.options())};
  store_double_scales(range.view({blocks}), parts);
  return parts;
}

std::vector<LearnedScale> scales_by(const QuantizedFormat& format, const at::Tensor& range, const Runs& runs,
                                    at::ScalarType dtype) {
  const float* ends = range.const_data_ptr<float>();
  const int64_t count = runs.count();
  std::vector<LearnedScale> scales(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    LearnedScale& s = scales[static_cast<size_t>(i)];
    if (format.kind == CodeKind::kNf4) {
      s.whole = runs.at(i).count == kNf4Block;
      s.chosen = ends[i];
      s.value = Scaled(ends[i], s.whole).scale;
      continue;
    }
    s.chosen = s.value = stored_up(exact_scale(format, ends, i, count), dtype);
    const bool usable = s.chosen > 0 && std::isfinite(s.chosen);
    s.zero = format.kind == CodeKind::kInt8 ? 0.0F
             : !format.has_zeros            ? static_cast<float>(kMiddleCode)
             : usable                       ? std::clamp(std::nearbyint(-ends[i] / s.chosen), 0.0F, 15.0F)
                                            : 0.0F;
  }
  if (format.double_scales) {
    const auto parts = double_scales(range);
    const auto* codes = parts[1].const_data_ptr<uint8_t>();
    const auto* outer = parts[2].const_data_ptr<float>();
    for (int64_t i = 0; i < count; ++i) {
      scales[static_cast<size_t>(i)].value =
          rounded_product(kDynamicLevels[codes[i]], outer[i / kScaleBlock]) + *parts[3].const_data_ptr<float>();
    }
  }
  return scales;
}

template <CodeKind kind>
constexpr float least_code() {
  return kind == CodeKind::kInt8 ? -127.0F : 0.0F;
}
template <CodeKind kind>
constexpr float most_code() {
  return kind == CodeKind::kInt8 ? 127.0F : 15.0F;
}

// Of int8 and int4, before it is held at the ends.
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
      const float code =
          usable(s) ? std::clamp(free_code(w[i], v[i], s), least_code<kind>(), most_code<kind>()) : s.zero;
      codes[i] = static_cast<uint8_t>(static_cast<int>(code));
    }
  }
}

template <CodeKind kind>
float value_by(uint8_t code, const LearnedScale& s) {
  const int number = kind == CodeKind::kInt8 ? static_cast<int8_t>(code) : code;
  return value_of<kind>(number, {s.value, s.zero}, kNf4Levels.data());
}

// A slope by the scale and one by the code of 0.
struct ScaleSlopes {
  double scale = 0, zero = 0;
};

// What one value passes on; `slope` is that of its offset.
template <CodeKind kind>
void pass_on(float g, float w, float v, const LearnedScale& s, float& slope, ScaleSlopes& sums) {
  const float place = w / s.chosen, code = free_code(w, v, s);
  if (code >= least_code<kind>() && code <= most_code<kind>()) {
    slope = g * s.value;
    sums.scale += static_cast<double>(g) * (static_cast<double>(code - s.zero) - place);
    return;
  }
  slope = 0;
  const float end = code < least_code<kind>() ? least_code<kind>() : most_code<kind>();
  sums.scale += static_cast<double>(g) * (end - s.zero);
  sums.zero -= static_cast<double>(g) * s.value;
}

template <>
void pass_on<CodeKind::kNf4>(float g, float w, float v, const LearnedScale& s, float& slope, ScaleSlopes& sums) {
  const Scaled scaled(s.chosen, s.whole);
  const float share = scaled(w);
  size_t interval = 0;
  while (interval + 1 < kLastLevel && share >= kNf4Levels[interval + 1]) ++interval;
  const float gap = kNf4Levels[interval + 1] - kNf4Levels[interval];
  const float place = static_cast<float>(interval) + (share - kNf4Levels[interval]) / gap + v;
  uint8_t code = 0;
  choose_codes<CodeKind::kNf4>(&w, &v, 1, s, &code);
  const double level = kNf4Levels[code];
  if (place < 0 || place > static_cast<float>(kLastLevel)) {
    slope = 0;
    sums.scale += g * level;
    return;
  }
  const size_t moved = std::min(static_cast<size_t>(place), kLastLevel - 1);
  const float moved_gap = kNf4Levels[moved + 1] - kNf4Levels[moved];
  slope = g * s.value * moved_gap;
  const bool held = std::abs(w) > s.chosen;  // its share is at an end, whatever the scale
  const double by_share =
      held || s.chosen <= 0 ? 0.0 : static_cast<double>(s.value) / s.chosen * moved_gap / gap * share;
  sums.scale += g * (level - by_share);
}

void store_slopes(const QuantizedFormat& format, const ScaleSlopes& sums, const LearnedScale& s, const float* range,
                  int64_t i, int64_t count, float* slopes) {
  if (format.kind == CodeKind::kNf4) {
    slopes[i] = static_cast<float>(sums.scale);
  } else if (!format.has_zeros) {
    slopes[i] = static_cast<float>(sums.scale / (format.kind == CodeKind::kInt8 ? 127.0 : 7.5));
  } else {
    const double scale = s.chosen, by_scale = (sums.scale + sums.zero * range[i] / (scale * scale)) / 15.0;
    slopes[i] = static_cast<float>(-by_scale - sums.zero / scale);
    slopes[count + i] = static_cast<float>(by_scale);
  }
}

template <CodeKind kind>
struct LearnedLoops {
  static void codes(const Runs& runs, const float* w, const float* v, const std::vector<LearnedScale>& scales,
                    uint8_t* codes) {
    runs.for_each([&](int64_t i, const Run& run) {
      choose_codes<kind>(w + run.begin, v + run.begin, run.count, scales[static_cast<size_t>(i)], codes + run.begin);
    });
  }

  static void values(const Runs& runs, const float* w, const float* v, const std::vector<LearnedScale>& scales,
                     float* values) {
    runs.for_each([&](int64_t i, const Run& run) {
      const LearnedScale& s = scales[static_cast<size_t>(i)];
      std::array<uint8_t, kNf4Block> codes{};
      for (int64_t done = 0; done < run.count; done += kNf4Block) {
        const int64_t first = run.begin + done, count = std::min(kNf4Block, run.count - done);
        choose_codes<kind>(w + first, v + first, count, s, codes.data());
        for (int64_t k = 0; k < count; ++k) values[first + k] = value_by<kind>(codes[static_cast<size_t>(k)], s);
      }
    });
  }

  static void slopes(const QuantizedFormat& format, const Runs& runs, const float* g, const float* w, const float* v,
                     const float* range, const std::vector<LearnedScale>& scales, float* offsets, float* ranges) {
    runs.for_each([&](int64_t i, const Run& run) {
      const LearnedScale& s = scales[static_cast<size_t>(i)];
      ScaleSlopes sums;
      if (!usable(s)) {
        std::fill_n(offsets + run.begin, run.count, 0.0F);
        ranges[i] = 0;
        if (format.has_zeros) ranges[runs.count() + i] = 0;
        return;
      }
      for (int64_t k = run.begin; k < run.begin + run.count; ++k) pass_on<kind>(g[k], w[k], v[k], s, offsets[k], sums);
      store_slopes(format, sums, s, range, i, runs.count(), ranges);
    });
  }

  // Into the cell of each code.
  static void move(const Runs& runs, const std::vector<LearnedScale>& scales, const uint8_t* codes, float* w) {
    runs.for_each([&](int64_t i, const Run& run) {
      const LearnedScale& s = scales[static_cast<size_t>(i)];
      if (!usable(s)) return;
      std::array<uint8_t, kNf4Block> nearest{};
      std::array<float, kNf4Block> none{};
      for (int64_t done = 0; done < run.count; done += kNf4Block) {
        const int64_t first = run.begin + done, count = std::min(kNf4Block, run.count - done);
        choose_codes<kind>(w + first, none.data(), count, s, nearest.data());
        for (int64_t k = 0; k < count; ++k) {
          if (nearest[static_cast<size_t>(k)] != codes[first + k])
            w[first + k] = moved(w[first + k], codes[first + k], s);
        }
      }
    });
  }

 private:
  static float moved(float w, uint8_t code, const LearnedScale& s) {
    if constexpr (kind == CodeKind::kNf4) {
      const float level = kNf4Levels[code];
      const float low = code > 0 ? level - kRoomToEdge * (level - kNf4Levels[code - 1U]) : w / s.chosen;
      const float high = code < kLastLevel ? level + kRoomToEdge * (kNf4Levels[code + 1U] - level) : w / s.chosen;
      return w / s.chosen < low ? low * s.chosen : w / s.chosen > high ? high * s.chosen : w;
    } else {
      const float number = kind == CodeKind::kInt8 ? static_cast<int8_t>(code) : code;
      const float middle = number - s.zero;
      const float low = (middle - kRoomToEdge) * s.chosen, high = (middle + kRoomToEdge) * s.chosen;
      if (w < low && number > least_code<kind>()) return low;
      if (w > high && number < most_code<kind>()) return high;
      return w;
    }
  }
};

// Calls work with the loops of the kind.
template <class Work>
void with_loops(CodeKind kind, const Work& work) {
  if (kind == CodeKind::kInt8) return work(LearnedLoops<CodeKind::kInt8>{});
  if (kind == CodeKind::kInt4) return work(LearnedLoops<CodeKind::kInt4>{});
  work(LearnedLoops<CodeKind::kNf4>{});
}

at::Tensor range_cpu(const at::Tensor& weight, c10::string_view name) {
  check_rounded_weight("quantized_range", weight);
  const QuantizedFormat format = format_named(name);
  const Runs runs(format, weight);
  at::Tensor range = at::empty({format.has_zeros ? 2 : 1, runs.count()}, weight.options());
  const float* w = weight.const_data_ptr<float>();
  auto* ends = range.mutable_data_ptr<float>();
  runs.for_each([&](int64_t i, const Run& run) {
    float least = 0, most = 0;
    for (int64_t k = run.begin; k < run.begin + run.count; ++k)
      least = std::min(least, w[k]), most = std::max(most, w[k]);
    ends[i] = format.has_zeros ? least : std::max(most, -least);
    if (format.has_zeros) ends[runs.count() + i] = most;
  });
  return range;
}

void store_scales(const QuantizedFormat& format, const at::Tensor& range, const std::vector<LearnedScale>& scales,
                  const Runs& runs, std::vector<at::Tensor>& parts) {
  if (format.double_scales) return store_double_scales(range.view({range.size(1)}), parts);
  at::Tensor wide = at::empty(parts[1].sizes(), range.options());
  for (size_t i = 0; i < scales.size(); ++i) wide.mutable_data_ptr<float>()[i] = scales[i].value;
  parts[1].copy_(wide);
  if (!format.has_zeros) return;
  auto* words = reinterpret_cast<uint32_t*>(parts[2].zero_().mutable_data_ptr<int32_t>());
  for (int64_t i = 0; i < runs.count(); ++i) {
    const int64_t row = i / runs.groups(), group = i % runs.groups();
    words[row / kWordCodes * runs.groups() + group] |= static_cast<uint32_t>(scales[static_cast<size_t>(i)].zero)
                                                       << row % kWordCodes * 4;
  }
}

std::vector<at::Tensor> quantize_learned_cpu(const at::Tensor& weight, const at::Tensor& offset,
                                             const at::Tensor& range, c10::string_view name, at::ScalarType dtype) {
  check_learned("quantize_learned", weight, offset, range, name, dtype);
  const QuantizedFormat format = format_named(name);
  std::vector<at::Tensor> parts;
  for (const QuantizedPart& part : parts_of(format, weight.size(0), weight.size(1), dtype))
    parts.push_back(at::empty(part.shape, weight.options().dtype(part.dtype)));
  for (at::Tensor& part : parts) part.zero_();
  if (weight.numel() == 0) return parts;
  const Runs runs(format, weight);
  const auto scales = scales_by(format, range, runs, dtype);
  std::vector<uint8_t> codes(static_cast<size_t>(weight.numel()));
  with_loops(format.kind, [&](auto loops) {
    loops.codes(runs, weight.const_data_ptr<float>(), offset.const_data_ptr<float>(), scales, codes.data());
  });
  store_codes(format, codes.data(), weight.size(0), weight.size(1), parts[0]);
  store_scales(format, range, scales, runs, parts);
  return parts;
}

at::Tensor learned_values_cpu(const at::Tensor& weight, const at::Tensor& offset, const at::Tensor& range,
                              c10::string_view name, at::ScalarType dtype) {
  check_learned("learned_values", weight, offset, range, name, dtype);
  at::Tensor values = at::empty_like(weight);
  if (weight.numel() == 0) return values;
  const QuantizedFormat format = format_named(name);
  const Runs runs(format, weight);
  const auto scales = scales_by(format, range, runs, dtype);
  with_loops(format.kind, [&](auto loops) {
    loops.values(runs, weight.const_data_ptr<float>(), offset.const_data_ptr<float>(), scales,
                 values.mutable_data_ptr<float>());
  });
  return values;
}

std::tuple<at::Tensor, at::Tensor> learned_gradients_cpu(const at::Tensor& gradient, const at::Tensor& weight,
                                                         const at::Tensor& offset, const at::Tensor& range,
                                                         c10::string_view name, at::ScalarType dtype) {
  check_learned("learned_gradients", weight, offset, range, name, dtype);
  check_rounded_weight("learned_gradients", gradient);
  check_same_shape("learned_gradients", "gradient", gradient, "weight", weight);
  at::Tensor offsets = at::empty_like(offset), ranges = at::empty_like(range);
  if (weight.numel() == 0) return {offsets, ranges};
  const QuantizedFormat format = format_named(name);
  const Runs runs(format, weight);
  const auto scales = scales_by(format, range, runs, dtype);
  with_loops(format.kind, [&](auto loops) {
    loops.slopes(format, runs, gradient.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                 offset.const_data_ptr<float>(), range.const_data_ptr<float>(), scales,
                 offsets.template mutable_data_ptr<float>(), ranges.template mutable_data_ptr<float>());
  });
  return {offsets, ranges};
}

template <CodeKind kind>
std::vector<uint8_t> codes_of(const QuantizedView& view) {
  std::vector<uint8_t> codes(static_cast<size_t>(view.rows * view.columns));
  for (int64_t row = 0; row < view.rows; ++row) {
    const int64_t first = code_index<kind>(view, row, 0);
    for (int64_t column = 0; column < view.columns; ++column)
      codes[static_cast<size_t>(row * view.columns + column)] =
          static_cast<uint8_t>(code_at<kind>(view, first + column));
  }
  return codes;
}

at::Tensor moved_to_codes_cpu(const at::Tensor& weight, const at::Tensor& range, at::TensorList parts,
                              c10::string_view name) {
  check_learned("moved_to_codes", weight, weight, range, name, at::kFloat);
  const QuantizedMatrix matrix = checked_matrix("moved_to_codes", parts, name, weight.size(0), weight.size(1));
  at::Tensor moved = weight.clone();
  if (weight.numel() == 0) return moved;
  const QuantizedFormat& format = matrix.format;
  const Runs runs(format, weight);
  const auto scales = scales_by(format, range, runs, matrix.scales());
  const auto codes = format.kind == CodeKind::kInt8   ? codes_of<CodeKind::kInt8>(view_of(matrix))
                     : format.kind == CodeKind::kInt4 ? codes_of<CodeKind::kInt4>(view_of(matrix))
                                                      : codes_of<CodeKind::kNf4>(view_of(matrix));
  with_loops(format.kind, [&](auto loops) { loops.move(runs, scales, codes.data(), moved.mutable_data_ptr<float>()); });
  return moved;
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("quantized_range", &range_cpu);
  m.impl("quantize_learned", &quantize_learned_cpu);
  m.impl("learned_values", &learned_values_cpu);
  m.impl("learned_gradients", &learned_gradients_cpu);
  m.impl("moved_to_codes", &moved_to_codes_cpu);
}

}  // namespace limbeck::kernels
