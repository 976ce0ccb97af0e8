#include "modules/precision/packed_weight.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>

#include "modules/precision/casts.h"

namespace limbeck::precision {

using kernels::QuantizedFormat;

namespace {

std::vector<kernels::QuantizedPart> parts_for(QuantizedFormat format, const PackedShape& shape, at::ScalarType scales) {
  return shape.count == 0 ? kernels::parts_of(format, shape.rows, shape.columns, scales)
                          : kernels::parts_of_stack(format, shape.count, shape.rows, shape.columns, scales);
}

}  // namespace

PackedWeight::PackedWeight(QuantizedFormat format, int64_t rows, int64_t columns, c10::Device device)
    : PackedWeight(format, PackedShape{rows, columns}, device) {}

PackedWeight::PackedWeight(QuantizedFormat format, const PackedShape& shape, c10::Device device, at::ScalarType scales)
    : matrix_{format, shape.rows, shape.columns, {}}, count_(shape.count) {
  for (const kernels::QuantizedPart& part : parts_for(format, shape, scales))
    matrix_.parts.push_back(at::empty(part.shape, at::TensorOptions().dtype(part.dtype).device(device)));
}

PackedWeight::PackedWeight(const at::Tensor& weight, QuantizedFormat format, c10::Device device,
                           at::ScalarType scales) {
  const at::NoGradGuard no_gradient;
  matrix_ = kernels::quantize(weight.detach(), format, scales);
  *this = on(device);
}

PackedWeight::PackedWeight(kernels::QuantizedMatrix matrix) : matrix_(std::move(matrix)) {}

const kernels::QuantizedMatrix& PackedWeight::matrix() const {
  if (count_ > 0) throw std::logic_error(fmt::format("a stack of {} packed matrices is no matrix", count_));
  return matrix_;
}

kernels::QuantizedStack PackedWeight::stack() const {
  if (count_ == 0) throw std::logic_error("a packed matrix is no stack");
  return {matrix_.format, count_, matrix_.rows, matrix_.columns, matrix_.parts};
}

PackedWeight PackedWeight::member(int64_t index) const { return PackedWeight(stack().matrix(index)); }

void PackedWeight::put(int64_t index, const PackedWeight& member) {
  const at::NoGradGuard no_gradient;
  const kernels::QuantizedMatrix& from = member.matrix();
  if (index == 0 && from.scales() != matrix_.scales()) {
    *this = PackedWeight(format(), PackedShape{matrix_.rows, matrix_.columns, count_}, matrix_.parts[0].device(),
                         from.scales());
  }
  kernels::QuantizedMatrix to = stack().matrix(index);
  if (from.format != to.format || from.rows != to.rows || from.columns != to.columns || from.scales() != to.scales())
    throw std::logic_error("a packed matrix of another form than those of its stack");
  for (size_t i = 0; i < to.parts.size(); ++i) to.parts[i].copy_(from.parts[i]);
}

PackedWeight PackedWeight::on(c10::Device device) const {
  PackedWeight moved = *this;
  for (at::Tensor& part : moved.matrix_.parts) part = move(part, device);
  return moved;
}

int64_t PackedWeight::bytes() const {
  int64_t bytes = 0;
  for (const at::Tensor& part : matrix_.parts) bytes += static_cast<int64_t>(part.nbytes());
  return bytes;
}

std::vector<std::pair<std::string, at::Tensor>> PackedWeight::parts() const {
  const auto names = kernels::parts_of(matrix_.format, matrix_.rows, matrix_.columns);
  std::vector<std::pair<std::string, at::Tensor>> found;
  for (size_t i = 0; i < names.size(); ++i) found.emplace_back(names[i].name, matrix_.parts[i]);
  return found;
}

at::Tensor PackedWeight::part(const std::string& name) const {
  for (auto& [found, tensor] : parts()) {
    if (found == name) return tensor;
  }
  throw std::logic_error(fmt::format("a {} weight has no {}", kernels::format_name(format()), name));
}

bool PackedWeight::same_form(const PackedWeight& other) const {
  return count_ == other.count_ && matrix_.format == other.matrix_.format && matrix_.rows == other.matrix_.rows &&
         matrix_.columns == other.matrix_.columns;
}

bool PackedWeight::operator==(const PackedWeight& other) const {
  const auto &own = matrix_.parts, &theirs = other.matrix_.parts;
  if (!same_form(other) || own.size() != theirs.size()) return false;
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i].sizes() != theirs[i].sizes() || !own[i].equal(theirs[i])) return false;
  }
  return true;
}

std::vector<std::string> PackedWeight::violations(QuantizedFormat format, const PackedShape& shape,
                                                  c10::Device device) const {
  const auto scales = matrix_.parts.size() > 1 ? matrix_.scales() : at::kFloat;
  const auto wanted = parts_for(format, shape, scales);
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

}  // namespace limbeck::precision
