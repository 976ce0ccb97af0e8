#include "modules/quantization/quantized_weight.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "modules/precision/casts.h"

namespace limbeck::quantization {

const std::vector<NamedKind>& quantized_formats() {
  using kernels::format_name, kernels::QuantizedFormat;
  static const std::vector<NamedKind> formats = {
      {format_name(QuantizedFormat::kInt8), "8 bits and a scale for each row"},
      {format_name(QuantizedFormat::kInt4), "4 bits, a scale and an offset for each 128 neighbours of a row"},
      {format_name(QuantizedFormat::kNf4),
       "4 bits by quantiles of a normal distribution, a scale for each 64 values; as bitsandbytes has it"},
      {format_name(QuantizedFormat::kNf4Double), "nf4 with its scales in 8 bits"}};
  return formats;
}

using kernels::QuantizedFormat;

QuantizedWeight::QuantizedWeight(QuantizedFormat format, int64_t rows, int64_t columns, c10::Device device)
    : matrix_{format, rows, columns, {}} {
  for (const kernels::QuantizedPart& part : kernels::parts_of(format, rows, columns))
    matrix_.parts.push_back(at::empty(part.shape, at::TensorOptions().dtype(part.dtype).device(device)));
}

QuantizedWeight::QuantizedWeight(const at::Tensor& weight, QuantizedFormat format, c10::Device device) {
  const at::NoGradGuard no_gradient;
  matrix_ = kernels::quantize(weight.detach(), format);
  for (at::Tensor& part : matrix_.parts) part = precision::move(part, device);
}

int64_t QuantizedWeight::bytes() const {
  int64_t bytes = 0;
  for (const at::Tensor& part : matrix_.parts) bytes += static_cast<int64_t>(part.nbytes());
  return bytes;
}

bool QuantizedWeight::operator==(const QuantizedWeight& other) const {
  const auto &own = matrix_.parts, &theirs = other.matrix_.parts;
  if (format() != other.format() || own.size() != theirs.size()) return false;
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i].sizes() != theirs[i].sizes() || !own[i].equal(theirs[i])) return false;
  }
  return true;
}

std::vector<std::string> QuantizedWeight::violations(QuantizedFormat format, int64_t rows, int64_t columns,
                                                     c10::Device device) const {
  const auto wanted = kernels::parts_of(format, rows, columns);
  if (matrix_.format != format || matrix_.parts.size() != wanted.size()) {
    return {fmt::format("the weight is stored in {}, wanted {}", kernels::format_name(matrix_.format),
                        kernels::format_name(format))};
  }
  std::vector<std::string> found;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const at::Tensor& part = matrix_.parts[i];
    const kernels::QuantizedPart& want = wanted[i];
    if (part.scalar_type() != want.dtype || part.sizes() != at::IntArrayRef(want.shape)) {
      found.push_back(fmt::format("{} of the {} weight are {} [{}], wanted {} [{}]", want.name,
                                  kernels::format_name(format), c10::toString(part.scalar_type()),
                                  fmt::join(part.sizes(), ","), c10::toString(want.dtype), fmt::join(want.shape, ",")));
    }
    if (part.device() != device) {
      found.push_back(fmt::format("{} of the {} weight are on {}, wanted {}", want.name, kernels::format_name(format),
                                  part.device().str(), device.str()));
    }
  }
  return found;
}

}  // namespace limbeck::quantization
