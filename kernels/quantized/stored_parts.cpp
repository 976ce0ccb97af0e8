#include "kernels/quantized/stored_parts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mean.h>

#include "kernels/operator/rounded_up.h"

namespace limbeck::kernels {
namespace {

// Index of the nearest level, of the lower one at equal distance.
template <size_t N>
int64_t nearest(const std::array<float, N>& middles, float value) {
  return std::lower_bound(middles.begin(), middles.end(), value) - middles.begin();
}

// Of a few values as ATen has it, of many from the means of runs that are the same on any number of threads.
at::Tensor mean_of(const at::Tensor& values) {
  constexpr int64_t kRun = 1 << 14;
  if (values.numel() <= kRun) return values.mean().view({1});
  double sum = 0;
  for (int64_t i = 0; i < values.numel(); i += kRun) {
    const at::Tensor run = values.narrow(0, i, std::min(kRun, values.numel() - i));
    sum += run.mean().item<double>() * static_cast<double>(run.numel());
  }
  return at::empty({1}, values.options()).fill_(sum / static_cast<double>(values.numel()));
}

}  // namespace

void store_codes(const QuantizedFormat& format, const uint8_t* codes, int64_t rows, int64_t columns,
                 at::Tensor& stored) {
  if (format.kind == CodeKind::kInt8) {
    std::copy(codes, codes + rows * columns, reinterpret_cast<uint8_t*>(stored.mutable_data_ptr<int8_t>()));
    return;
  }
  if (format.kind == CodeKind::kInt4) {
    auto* words = reinterpret_cast<uint32_t*>(stored.mutable_data_ptr<int32_t>());
    for (int64_t row = 0; row < rows; ++row)
      pack_codes(format.bits, codes + row * columns, columns, words + row * stored.size(1));
    return;
  }
  // The unused half of a last byte holds the code of 0.
  constexpr uint8_t kZeroCode = 7;
  static_assert(kNf4Levels[kZeroCode] == 0.0F);
  auto* bytes = stored.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < stored.numel(); ++i) {
    const uint8_t low = 2 * i + 1 < rows * columns ? codes[2 * i + 1] : kZeroCode;
    bytes[i] = static_cast<uint8_t>(codes[2 * i] << 4 | low);
  }
}

void load_codes(const QuantizedView& v, int64_t row, uint8_t* codes) {
  if (v.format.kind == CodeKind::kInt8) {
    std::copy_n(static_cast<const uint8_t*>(v.codes) + row * v.columns, v.columns, codes);
  } else if (v.format.kind == CodeKind::kInt4) {
    unpack_codes(v.format.bits, row_words(v, row), words_of_row(v), 0, v.columns, codes);
  } else {
    for (int64_t column = 0; column < v.columns; ++column)
      codes[column] = static_cast<uint8_t>(code_at<CodeKind::kNf4>(v, row, column));
  }
}

void store_double_scales(const at::Tensor& exact, std::vector<at::Tensor>& parts) {
  static const auto middles = middles_of(kDynamicLevels);
  const at::Tensor offset = mean_of(exact), centred = exact - offset;
  parts[3].copy_(offset);
  const float* values = centred.const_data_ptr<float>();
  auto* codes = parts[1].mutable_data_ptr<uint8_t>();
  auto* scales = parts[2].mutable_data_ptr<float>();
  for (int64_t begin = 0; begin < exact.numel(); begin += kScaleBlock) {
    const int64_t count = std::min(kScaleBlock, exact.numel() - begin);
    const Scaled scaled(largest_magnitude(values + begin, count), count == kScaleBlock);
    scales[begin / kScaleBlock] = scaled.scale;
    for (int64_t i = begin; i < begin + count; ++i)
      codes[i] = static_cast<uint8_t>(nearest(middles, scaled(values[i])));
  }
}

}  // namespace limbeck::kernels
