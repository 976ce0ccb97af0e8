#include "modules/adapters/low_rank/low_rank_embedding.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>

#include <algorithm>

#include "kernels/linear/linear.h"
#include "modules/adapters/low_rank/dora.h"
#include "modules/models/network/parameter_modules.h"
#include "modules/models/weights/initialize.h"

namespace limbeck::adapters {
namespace {

constexpr int64_t kTableRowsAtATime = 4096;  // of E + s (B A)^T, which a forward never has whole

}  // namespace

LowRankEmbedding::LowRankEmbedding(const precision::Scope& scope, const precision::Precision& host,
                                   const LowRankShape& shape)
    : EmbeddingAdapter(scope, host), shape_(shape) {
  create_parameter("lora_embedding_A", {shape.rank, shape.in});
  create_parameter("lora_embedding_B", {shape.out, shape.rank});
  if (shape.dora) create_parameter(kMagnitude, {shape.out});
}

at::Tensor LowRankEmbedding::rows_of_change(int64_t row, int64_t rows) const {
  const at::NoGradGuard no_gradient;
  const at::Tensor a = widened(parameter("lora_embedding_A").narrow(1, row, rows));
  return at::mm(a.t(), widened(parameter("lora_embedding_B")).t()).mul_(shape_.scale);
}

at::Tensor LowRankEmbedding::rows_of_sum(const models::Embedding& host, int64_t row, int64_t rows) const {
  const at::NoGradGuard no_gradient;
  return rows_of_change(row, rows).add_(widened(host.weight_rows(row, rows)));
}

at::Tensor LowRankEmbedding::column_norms(const models::Embedding& host) const {
  const at::NoGradGuard no_gradient;
  at::Tensor squares;
  for (int64_t row = 0; row < shape_.in; row += kTableRowsAtATime) {
    const at::Tensor sum = rows_of_sum(host, row, std::min(kTableRowsAtATime, shape_.in - row)).square_().sum(0);
    squares = squares.defined() ? squares.add_(sum) : sum;
  }
  return squares.sqrt_();
}

void LowRankEmbedding::initialize(const models::Embedding& host, uint64_t seed) {
  if (placement().is_meta()) return;
  const at::NoGradGuard no_gradient;
  parameter("lora_embedding_A").detach().zero_();
  models::fill_normal(parameter("lora_embedding_B"), seed, path() + ".lora_embedding_B", 1.0);
  if (!shape_.dora) return;
  at::Tensor magnitude = parameter(kMagnitude).detach();
  precision::cast_into(magnitude, column_norms(host));
}

models::MergedWeight LowRankEmbedding::merged(const models::Embedding& host) const {
  const at::NoGradGuard no_gradient;
  models::MergedWeight merged{rows_of_sum(host, 0, shape_.in), std::nullopt};
  if (shape_.dora) merged.weight.mul_(widened(parameter(kMagnitude)) / column_norms(host));
  return merged;
}

std::string LowRankEmbedding::unmerge_fault() const { return shape_.dora ? kDoraStays : ""; }

models::UnmergedWeight LowRankEmbedding::unmerged(const models::Embedding& host) const {
  const at::NoGradGuard no_gradient;
  const at::Tensor weight = widened(host.weight()) - rows_of_change(0, shape_.in);
  return {weight, std::nullopt, at::ones({1}, weight.options())};
}

at::Tensor LowRankEmbedding::forward(const at::Tensor& ids, const models::Embedding& host) const {
  const precision::ModuleScope scope(path());
  accept_ids(ids);
  const at::Tensor low = at::embedding(parameter("lora_embedding_A").t(), ids, host.padding_id());
  const at::Tensor change = leave(kernels::linear(low, parameter("lora_embedding_B")) * shape_.scale);
  const at::Tensor y = host.base_forward(ids) + change;
  return shape_.dora ? y * dora_factor(*this, column_norms(host)) : y;
}

}  // namespace limbeck::adapters
