#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>

#include "kernels/cpu/task_grain.h"
#include "kernels/operator/checks.h"
#include "kernels/quantized/quantized_operands.h"
#include "kernels/quantized/stored_parts.h"

#ifndef _OPENMP
#error "compile kernels/ with -fopenmp: at::parallel_for is header code and runs on one thread without it"
#endif

namespace limbeck::kernels {
namespace {

bool all_finite(const float* w, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite = finite && std::isfinite(w[i]);
  return finite;
}

template <class S>
void quantize_group(const float* w, int64_t count, int8_t* codes, S& stored) {
  stored = rounded_up<S>(largest_magnitude(w, count) / 127.0F);
  const float scale = static_cast<float>(stored);
  for (int64_t i = 0; i < count; ++i) {
    const float code = scale > 0 ? std::nearbyint(w[i] / scale) : 0.0F;
    codes[i] = static_cast<int8_t>(std::clamp(code, -127.0F, 127.0F));
  }
}

// Codes are or-ed into bytes that hold zeros, so that a byte whose halves belong to two calls gets both.
inline void put_code(uint8_t* codes, int64_t i, unsigned code) {
  codes[i / 2] = static_cast<uint8_t>(codes[i / 2] | (i % 2 == 0 ? code << 4 : code));
}

// Codes of one group, which begins a word; gives the code of 0.
template <class S>
uint32_t quantize_group(const QuantizedFormat& format, const float* w, int64_t count, uint32_t* words, S& stored) {
  const auto last = static_cast<float>(format.last_code());
  float least = 0, most = 0;
  for (int64_t i = 0; i < count; ++i) least = std::min(least, w[i]), most = std::max(most, w[i]);
  stored = rounded_up<S>(format.has_zeros ? (most - least) / last : std::max(most, -least) / (last / 2.0F));
  const float scale = static_cast<float>(stored);
  const bool usable = scale > 0 && std::isfinite(scale);
  const float zero = !format.has_zeros ? static_cast<float>(format.middle_code())
                     : usable          ? std::clamp(std::nearbyint(-least / scale), 0.0F, last)
                                       : 0.0F;
  std::array<uint8_t, kLargestGroup> codes{};
  for (int64_t i = 0; i < count; ++i) {
    const float code = usable ? std::clamp(std::nearbyint(w[i] / scale) + zero, 0.0F, last) : zero;
    codes[static_cast<size_t>(i)] = static_cast<uint8_t>(static_cast<int>(code));
  }
  pack_codes(format.bits, codes.data(), count, words);
  return static_cast<uint32_t>(zero);
}

void quantize_block(const float* w, int64_t count, uint8_t* codes, int64_t first, float& scale) {
  static const auto middles = middles_of(kNf4Levels);
  const Scaled scaled(largest_magnitude(w, count), count == kNf4Block);
  scale = scaled.scale;
  // The nearest level's index is the number of middles below: all values at once, which the compiler vectorises.
  std::array<float, kNf4Block> values{};
  std::array<int32_t, kNf4Block> below{};
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = scaled(w[i]);
  for (const float middle : middles) {
    for (size_t i = 0; i < below.size(); ++i) below[i] += values[i] > middle ? 1 : 0;
  }
  // The unused half of a last byte holds the code of 0.
  for (int64_t i = 0; i < count + count % 2; ++i)
    put_code(codes, first + i, static_cast<unsigned>(below[static_cast<size_t>(i)]));
}

// Calls body with a pointer to scales of their dtype.
template <class Body>
void with_scales(const at::Tensor& scales, const Body& body) {
  if (scales.scalar_type() == at::kBFloat16) return body(scales.mutable_data_ptr<c10::BFloat16>());
  if (scales.scalar_type() == at::kHalf) return body(scales.mutable_data_ptr<c10::Half>());
  return body(scales.mutable_data_ptr<float>());
}

void quantize_int8(const QuantizedFormat& format, const float* w, int64_t rows, int64_t columns,
                   std::vector<at::Tensor>& parts) {
  auto* codes = parts[0].mutable_data_ptr<int8_t>();
  const int64_t group = format.has_groups() ? format.group() : columns, groups = rounded_up_quotient(columns, group);
  with_scales(parts[1], [&](auto* scales) {
    at::parallel_for(0, rows, items_per_task(columns), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * groups; i < end * groups; ++i) {
        const int64_t column = i % groups * group, first = i / groups * columns + column;
        quantize_group(w + first, std::min(group, columns - column), codes + first, scales[i]);
      }
    });
  });
}

void quantize_words(const QuantizedFormat& format, const float* w, int64_t rows, int64_t columns,
                    std::vector<at::Tensor>& parts) {
  auto* codes = reinterpret_cast<uint32_t*>(parts[0].mutable_data_ptr<int32_t>());
  auto* zeros = format.has_zeros ? reinterpret_cast<uint32_t*>(parts[2].zero_().mutable_data_ptr<int32_t>()) : nullptr;
  const int64_t groups = parts[1].size(1), words = parts[0].size(1), group = format.group();
  const int64_t together = codes_of_whole_words(format.bits);  // rows that share words of zeros
  with_scales(parts[1], [&](auto* scales) {
    const auto quantize_row = [&](int64_t row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t first = g * group, count = std::min(group, columns - first);
        uint32_t* own = codes + row * words + words_of_codes(format.bits, first);
        const uint32_t zero = quantize_group(format, w + row * columns + first, count, own, scales[row * groups + g]);
        if (zeros != nullptr) put_in_words(zeros + g, groups, format.bits, row, zero);
      }
    };
    at::parallel_for(0, rounded_up_quotient(rows, together), items_per_task(columns * together),
                     [&](int64_t begin, int64_t end) {
                       for (int64_t row = begin * together; row < std::min(end * together, rows); ++row)
                         quantize_row(row);
                     });
  });
}

void quantize_nf4(const float* w, int64_t values, at::Tensor& packed, at::Tensor& scales) {
  auto* codes = packed.zero_().mutable_data_ptr<uint8_t>();
  auto* scale = scales.mutable_data_ptr<float>();
  // A block is 32 whole bytes: threads share none.
  at::parallel_for(0, scales.numel(), items_per_task(kNf4Block), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kNf4Block;
      quantize_block(w + first, std::min(kNf4Block, values - first), codes, first, scale[block]);
    }
  });
}

std::vector<at::Tensor> quantize_cpu(const at::Tensor& weight, c10::string_view name, at::ScalarType scales) {
  const QuantizedFormat format = format_named(name);
  const auto dtype = weight.scalar_type();
  TORCH_CHECK(weight.dim() == 2 && (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf),
              "[quantize_weight] weight is ", described(weight),
              ", wanted float32, bfloat16 or float16 [rows, columns]");
  TORCH_CHECK(scales == at::kFloat || scales == at::kBFloat16 || scales == at::kHalf, "[quantize_weight] scales in ",
              c10::toString(scales), ", wanted float32, bfloat16 or float16");
  const at::Tensor wide = weight.to(at::kFloat).contiguous();
  const int64_t rows = wide.size(0), columns = wide.size(1);
  const float* w = wide.const_data_ptr<float>();
  for (int64_t row = 0; row < rows; ++row) {
    TORCH_CHECK(all_finite(w + row * columns, columns), "[quantize_weight] row ", row, " of ", described(weight),
                " holds NaN or infinity, which no ", name, " code stands for");
  }
  std::vector<at::Tensor> parts;
  for (const QuantizedPart& part : parts_of(format, rows, columns, scales))
    parts.push_back(at::empty(part.shape, wide.options().dtype(part.dtype)));
  if (wide.numel() == 0) {
    for (at::Tensor& part : parts) part.zero_();
    return parts;
  }
  switch (format.kind) {
    case CodeKind::kInt8:
      quantize_int8(format, w, rows, columns, parts);
      break;
    case CodeKind::kInt4:
      quantize_words(format, w, rows, columns, parts);
      break;
    case CodeKind::kNf4: {
      at::Tensor wide_scales = format.double_scales ? at::empty(parts[1].sizes(), wide.options()) : parts[1];
      quantize_nf4(w, wide.numel(), parts[0], wide_scales);
      if (format.double_scales) store_double_scales(wide_scales, parts);
      break;
    }
  }
  TORCH_CHECK(format.kind == CodeKind::kNf4 || parts[1].isfinite().all().item<bool>(), "[quantize_weight] ",
              described(weight), " holds values whose scale overflows ", c10::toString(scales));
  return parts;
}

}  // namespace

TORCH_LIBRARY_IMPL(limbeck, CPU, m) { m.impl("quantize_weight", &quantize_cpu); }

}  // namespace limbeck::kernels
