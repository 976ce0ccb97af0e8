#include "modules/adapters/low_rank.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "kernels/linear.h"
#include "modules/models/layers.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

constexpr int64_t kRowsAtATime = 256;  // of W + s B A, which never exists whole

}  // namespace

LowRank::LowRank(const precision::Scope& scope, const precision::Precision& host, const LowRankShape& shape)
    : LinearAdapter(scope, host), shape_(shape) {
  create_parameter("lora_A", {shape.rank, shape.in});
  create_parameter("lora_B", {shape.out, shape.rank});
  if (shape.dora) create_parameter("lora_magnitude_vector", {shape.out});
}

at::Tensor LowRank::row_norms(const at::Tensor& weight) const {
  const at::NoGradGuard no_gradient;
  const at::ScalarType storage = precision().storage, host = weight.scalar_type();
  const at::ScalarType wide = host == at::kDouble ? at::kDouble : at::kFloat;
  const auto widened = [&](const at::Tensor& part, at::ScalarType from) {
    return precision::cast(part.detach(), from, wide, path() + " (norm)");
  };
  const at::Tensor a = widened(parameter("lora_A"), storage), b = widened(parameter("lora_B"), storage);
  at::Tensor norms = at::empty({shape_.out}, a.options());
  for (int64_t row = 0; row < shape_.out; row += kRowsAtATime) {
    const int64_t rows = std::min(kRowsAtATime, shape_.out - row);
    at::Tensor sum = at::mm(b.narrow(0, row, rows), a).mul_(shape_.scale);
    sum.add_(widened(weight.narrow(0, row, rows), host));
    norms.narrow(0, row, rows).copy_(at::linalg_vector_norm(sum, 2, at::IntArrayRef{1}));
  }
  return norms;
}

at::Tensor LowRank::forward(const at::Tensor& x, const models::Linear& host) const {
  const precision::ModuleScope scope(path());
  const at::Tensor low = kernels::linear(enter(x), parameter("lora_A"));
  const at::Tensor change = leave(kernels::linear(low, parameter("lora_B"))) * shape_.scale;
  if (!shape_.dora) return host.base_forward(x) + change;
  const at::Tensor norms = row_norms(host.weight());
  const at::ScalarType wide = norms.scalar_type(), storage = precision().storage, stream = precision().output;
  const at::Tensor magnitude =
      precision::cast(parameter("lora_magnitude_vector"), storage, wide, path() + " (magnitude)");
  const at::Tensor factor = precision::cast(magnitude / norms, wide, stream, path() + " (direction)");
  const at::Tensor y = (host.product(x) + change) * factor;
  const auto bias = host.bias();
  return bias ? y + precision::cast(*bias, bias->scalar_type(), stream, path() + " (bias)") : y;
}

}  // namespace limbeck::adapters
