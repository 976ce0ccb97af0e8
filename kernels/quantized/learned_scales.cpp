#include "kernels/quantized/learned_scales.h"

#include <ATen/ops/empty.h>

namespace limbeck::kernels {
namespace {

float stored_up(float exact, at::ScalarType dtype) {
  if (dtype == at::kBFloat16) return static_cast<float>(rounded_up<c10::BFloat16>(exact));
  if (dtype == at::kHalf) return static_cast<float>(rounded_up<c10::Half>(exact));
  return exact;
}

float exact_scale(const QuantizedFormat& format, const float* range, int64_t i, int64_t count) {
  return format.has_zeros ? (range[count + i] - range[i]) / most_code(format) : range[i] / steps_of_magnitude(format);
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

}  // namespace

std::vector<LearnedScale> learned_scales(const QuantizedFormat& format, const at::Tensor& range, const Runs& runs,
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
    s.last = most_code(format);
    s.chosen = s.value = stored_up(exact_scale(format, ends, i, count), dtype);
    const bool usable = s.chosen > 0 && std::isfinite(s.chosen);
    s.zero = format.kind == CodeKind::kInt8 ? 0.0F
             : !format.has_zeros            ? static_cast<float>(format.middle_code())
             : usable                       ? std::clamp(std::nearbyint(-ends[i] / s.chosen), 0.0F, s.last)
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

}  // namespace limbeck::kernels
