#include "modules/adapters/low_rank/low_rank.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/dropout/dropout.h"
#include "kernels/linear/linear.h"
#include "modules/adapters/low_rank/dora.h"
#include "modules/models/network/parameter_modules.h"
#include "modules/models/weights/initialize.h"
#include "modules/precision/casts.h"

namespace limbeck::adapters {
namespace {

constexpr int64_t kRowsAtATime = 256;  // of W + s B A, which never exists whole

}  // namespace

void fill_low_rank(const precision::ContractModule& adapter, uint64_t seed, int64_t in) {
  const double deviation = 1.0 / std::sqrt(3.0 * static_cast<double>(in));
  models::fill_normal(adapter.parameter("lora_A"), seed, adapter.path() + ".lora_A", deviation);
  adapter.parameter("lora_B").detach().zero_();
}

LowRank::LowRank(const precision::Scope& scope, const precision::Precision& host, const LowRankShape& shape)
    : LinearAdapter(scope, host), shape_(shape) {
  create_parameter("lora_A", {shape.rank, shape.in});
  create_parameter("lora_B", {shape.out, shape.rank});
  if (shape.dora) create_parameter(kMagnitude, {shape.out});
}

at::Tensor LowRank::rows_of_change(const at::Tensor& wide_a, int64_t row, int64_t rows) const {
  const at::NoGradGuard no_gradient;
  return at::mm(widened(parameter("lora_B").narrow(0, row, rows)), wide_a).mul_(shape_.scale);
}

at::Tensor LowRank::rows_of_sum(const models::Linear& host, const at::Tensor& wide_a, int64_t row, int64_t rows) const {
  const at::NoGradGuard no_gradient;
  return rows_of_change(wide_a, row, rows).add_(widened(host.weight_rows(row, rows)));
}

at::Tensor LowRank::row_norms(const models::Linear& host) const {
  const at::NoGradGuard no_gradient;
  std::vector<at::Tensor> norms;
  const at::Tensor wide_a = widened(parameter("lora_A"));
  for (int64_t row = 0; row < shape_.out; row += kRowsAtATime) {
    const at::Tensor sum = rows_of_sum(host, wide_a, row, std::min(kRowsAtATime, shape_.out - row));
    norms.push_back(at::linalg_vector_norm(sum, 2, at::IntArrayRef{1}));
  }
  return at::cat(norms);
}

void LowRank::initialize(const models::Linear& host, uint64_t seed) {
  if (placement().is_meta()) return;
  const at::NoGradGuard no_gradient;
  fill_low_rank(*this, seed, shape_.in);
  if (!shape_.dora) return;
  at::Tensor magnitude = parameter(kMagnitude).detach();
  precision::cast_into(magnitude, row_norms(host));
}

models::MergedWeight LowRank::merged(const models::Linear& host) const {
  const at::NoGradGuard no_gradient;
  models::MergedWeight merged{rows_of_sum(host, widened(parameter("lora_A")), 0, shape_.out), host.bias()};
  if (shape_.dora) {
    const at::Tensor factor = widened(parameter(kMagnitude)) / row_norms(host);
    merged.weight.mul_(factor.unsqueeze(1));
  }
  if (merged.bias) merged.bias = widened(*merged.bias);
  return merged;
}

std::string LowRank::unmerge_fault() const { return shape_.dora ? kDoraStays : ""; }

models::UnmergedWeight LowRank::unmerged(const models::Linear& host) const {
  const at::NoGradGuard no_gradient;
  at::Tensor weight = widened(host.weight()) - rows_of_change(widened(parameter("lora_A")), 0, shape_.out);
  models::UnmergedWeight unmerged{weight, host.bias(), at::ones({1}, weight.options())};
  if (unmerged.bias) unmerged.bias = widened(*unmerged.bias);
  return unmerged;
}

at::Tensor LowRank::low(const at::Tensor& x, const at::Tensor& a, const models::Draws& draws) const {
  if (!drops(draws)) return kernels::linear(enter(x), a);
  return kernels::dropped_linear(enter(x), a, draws.mask(path(), shape_.dropout));
}

at::Tensor LowRank::forward(const at::Tensor& x, const models::Linear& host, const models::Draws& draws) const {
  const precision::ModuleScope scope(path());
  const at::Tensor change =
      leave(kernels::linear(low(x, parameter("lora_A"), draws), parameter("lora_B")) * shape_.scale);
  if (!shape_.dora) return host.base_forward(x) + change;
  const at::Tensor norms = row_norms(host), factor = dora_factor(*this, norms);
  if (drops(draws)) {
    const at::Tensor left = kernels::dropout(x, draws.mask(path(), shape_.dropout));
    return host.base_forward(x) + (host.product(left) * dora_excess(*this, norms) + change * factor);
  }
  const at::Tensor y = (host.product(x) + change) * factor;
  const auto bias = host.bias();
  return bias ? y + precision::cast(*bias, bias->scalar_type(), precision().output, path() + " (bias)") : y;
}

models::ProductOperands LowRank::operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                          const models::Draws& draws) const {
  const precision::ModuleScope scope(path());
  const auto own = [&](const at::Tensor& tensor) { return learns ? tensor : tensor.detach(); };
  const at::Tensor scaled = leave(low(x, own(parameter("lora_A")), draws) * shape_.scale);
  const at::Tensor weight = host.operand();
  const at::Tensor b =
      precision::cast(own(parameter("lora_B")), precision().storage, weight.scalar_type(), path() + " (B)");
  if (!shape_.dora) return {at::cat({x, scaled}, -1), at::cat({weight, b}, 1)};
  const at::Tensor norms = row_norms(host), factor = own(dora_factor(*this, norms)).unsqueeze(1);
  if (!drops(draws)) return {at::cat({x, scaled}, -1), at::cat({weight, b}, 1) * factor};
  const at::Tensor left = kernels::dropout(x, draws.mask(path(), shape_.dropout));
  const at::Tensor excess = own(dora_excess(*this, norms)).unsqueeze(1);
  return {at::cat({x, left, scaled}, -1), at::cat({weight, weight * excess, b * factor}, 1)};
}

}  // namespace limbeck::adapters
