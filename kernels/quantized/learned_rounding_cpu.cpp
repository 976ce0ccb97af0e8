#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernels/quantized/learned_scales.h"

namespace limbeck::kernels {
namespace {

constexpr float kRoomToEdge = 0.48F;  // of a step: how far from its code a moved value may lie

template <CodeKind kind>
struct CodeLoops {
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
      if (w > high && number < s.last) return high;
      return w;
    }
  }
};

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
    const auto zero = static_cast<uint32_t>(scales[static_cast<size_t>(i)].zero);
    put_in_words(words + i % runs.groups(), runs.groups(), format.bits, i / runs.groups(), zero);
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
  const auto scales = learned_scales(format, range, runs, dtype);
  std::vector<uint8_t> codes(static_cast<size_t>(weight.numel()));
  with_loops<CodeLoops>(format.kind, [&](auto loops) {
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
  const auto scales = learned_scales(format, range, runs, dtype);
  with_loops<CodeLoops>(format.kind, [&](auto loops) {
    loops.values(runs, weight.const_data_ptr<float>(), offset.const_data_ptr<float>(), scales,
                 values.mutable_data_ptr<float>());
  });
  return values;
}

std::vector<uint8_t> codes_of(const QuantizedView& view) {
  std::vector<uint8_t> codes(static_cast<size_t>(view.rows * view.columns));
  for (int64_t row = 0; row < view.rows; ++row) load_codes(view, row, codes.data() + row * view.columns);
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
  const auto scales = learned_scales(format, range, runs, matrix.scales());
  const auto codes = codes_of(view_of(matrix));
  with_loops<CodeLoops>(format.kind,
                        [&](auto loops) { loops.move(runs, scales, codes.data(), moved.mutable_data_ptr<float>()); });
  return moved;
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CPU, m) {
  m.impl("quantized_range", &range_cpu);
  m.impl("quantize_learned", &quantize_learned_cpu);
  m.impl("learned_values", &learned_values_cpu);
  m.impl("moved_to_codes", &moved_to_codes_cpu);
}

}  // namespace limbeck::kernels
