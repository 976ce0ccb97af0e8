#include "kernels/quantized/fitted_range.h"

#include <ATen/ops/empty.h>

#include <array>
#include <limits>

#include "kernels/quantized/learned_scales.h"

namespace limbeck::kernels {
namespace {

// Of the range that covers all values. Below a third not even 2 bits of values with long tails find their least error.
constexpr float kLeastShare = 0.3F, kShareStep = 0.05F;

// Of a run, the error of its codes to nearest.
double error_of(const float* w, const double* importance, int64_t count, const LearnedScale& s) {
  std::array<uint8_t, kLargestGroup> codes{};
  std::array<float, kLargestGroup> no_offset{};
  choose_codes<CodeKind::kInt4>(w, no_offset.data(), count, s, codes.data());
  double error = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double off = static_cast<double>(w[k]) - value_by<CodeKind::kInt4>(codes[static_cast<size_t>(k)], s);
    error += importance[k] * off * off;
  }
  return error;
}

}  // namespace

at::Tensor fitted_range(const at::Tensor& weight, const at::Tensor& importance, QuantizedFormat format,
                        at::ScalarType scales) {
  const at::Tensor whole = range_of(weight, format);
  const Runs runs(format, weight);
  at::Tensor chosen = whole.clone();
  std::vector<double> least(static_cast<size_t>(runs.count()), std::numeric_limits<double>::infinity());
  const auto* w = weight.const_data_ptr<float>();
  const auto* by_column = importance.const_data_ptr<double>();
  auto* ends = chosen.mutable_data_ptr<float>();
  for (float share = 1.0F; share > kLeastShare; share -= kShareStep) {
    const at::Tensor tried = whole * share;
    const auto scales_of = learned_scales(format, tried, runs, scales);
    const auto* from = tried.const_data_ptr<float>();
    runs.for_each([&](int64_t i, const Run& run) {
      const auto at = static_cast<size_t>(i);
      const double error = error_of(w + run.begin, by_column + run.begin % weight.size(1), run.count, scales_of[at]);
      if (!(error < least[at])) return;
      least[at] = error;
      for (int64_t end = 0; end < whole.size(0); ++end) ends[end * runs.count() + i] = from[end * runs.count() + i];
    });
  }
  return chosen;
}

at::Tensor range_behind(const QuantizedMatrix& matrix) {
  const QuantizedView view = view_of(matrix);
  const int64_t groups = groups_of(view), count = matrix.rows * groups;
  const bool zeros = matrix.format.has_zeros;
  at::Tensor range = at::empty({zeros ? 2 : 1, count}, matrix.parts.at(1).options().dtype(at::kFloat));
  auto* ends = range.mutable_data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) {
    const ValueScale s =
        scale_at<CodeKind::kInt4>(view, i / groups, i % groups * matrix.format.group(), kDynamicLevels.data());
    ends[i] = zeros ? -s.zero * s.scale : steps_of_magnitude(matrix.format) * s.scale;
    if (zeros) ends[count + i] = (most_code(matrix.format) - s.zero) * s.scale;
  }
  return range;
}

}  // namespace limbeck::kernels
