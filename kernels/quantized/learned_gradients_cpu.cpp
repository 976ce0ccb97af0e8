#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernels/quantized/learned_scales.h"

namespace limbeck::kernels {
namespace {

// A slope by the scale and one by the code of 0.
struct ScaleSlopes {
  double scale = 0, zero = 0;
};

// What one value passes on; `slope` is that of its offset.
template <CodeKind kind>
void pass_on(float g, float w, float v, const LearnedScale& s, float& slope, ScaleSlopes& sums) {
  const float place = w / s.chosen, code = free_code(w, v, s);
  if (code >= least_code<kind>() && code <= s.last) {
    slope = g * s.value;
    sums.scale += static_cast<double>(g) * (static_cast<double>(code - s.zero) - place);
    return;
  }
  slope = 0;
  const float end = code < least_code<kind>() ? least_code<kind>() : s.last;
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
    slopes[i] = static_cast<float>(sums.scale / steps_of_magnitude(format));
  } else {
    const double scale = s.chosen, by_scale = (sums.scale + sums.zero * range[i] / (scale * scale)) / s.last;
    slopes[i] = static_cast<float>(-by_scale - sums.zero / scale);
    slopes[count + i] = static_cast<float>(by_scale);
  }
}

template <CodeKind kind>
struct SlopeLoops {
  static void run(const QuantizedFormat& format, const Runs& runs, const float* g, const float* w, const float* v,
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
};

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
  const auto scales = learned_scales(format, range, runs, dtype);
  with_loops<SlopeLoops>(format.kind, [&](auto loops) {
    loops.run(format, runs, gradient.const_data_ptr<float>(), weight.const_data_ptr<float>(),
              offset.const_data_ptr<float>(), range.const_data_ptr<float>(), scales,
              offsets.template mutable_data_ptr<float>(), ranges.template mutable_data_ptr<float>());
  });
  return {offsets, ranges};
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("learned_gradients", &learned_gradients_cpu); }

}  // namespace limbeck::kernels
