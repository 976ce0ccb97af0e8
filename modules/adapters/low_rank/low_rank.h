// LoRA, y = W x + b + s B A x, and DoRA, y = m / |W + s B A| (W x + s B A x) + b with a norm for each row of the
// weight. With dropout, in training and with PEFT's meaning: x' is what is left of x, LoRA's A reads x', and DoRA's
// y = W x + b + (m / |W + s B A| - 1) W x' + m / |W + s B A| s B A x'.
#pragma once
#include "modules/models/network/weight_adapter.h"

namespace limbeck::adapters {

struct LowRankShape {
  int64_t in = 0, out = 0, rank = 0;
  double scale = 1;  // s: alpha / rank, or alpha / sqrt(rank) for rsLoRA
  bool dora = false;
  double dropout = 0;  // of linear modules
};

// First values: A a normal with the variance of PEFT's uniform, 1 / (3 in), B zero.
void fill_low_rank(const precision::ContractModule& adapter, uint64_t seed, int64_t in);

// Parameters: lora_A [rank, in], lora_B [out, rank]; DoRA also lora_magnitude_vector [out].
class LowRank : public models::LinearAdapter {
 public:
  LowRank(const precision::Scope& scope, const precision::Precision& host, const LowRankShape& shape);
  at::Tensor forward(const at::Tensor& x, const models::Linear& host, const models::Draws& draws) const override;
  // [x, s A x] and [W, B], side by side: what B adds is not rounded away into W. DoRA with dropout: what is left of x
  // is there as well.
  models::ProductOperands operands(const at::Tensor& x, const models::Linear& host, bool learns,
                                   const models::Draws& draws) const override;
  models::MergedWeight merged(const models::Linear& host) const override;
  models::UnmergedWeight unmerged(const models::Linear& host) const override;  // of LoRA: W = W' - s B A
  std::string unmerge_fault() const override;
  // The magnitude is that of W.
  void initialize(const models::Linear& host, uint64_t seed) override;

 private:
  // Rows of s B A and of W + s B A, wide, without a gradient; `wide_a`: A widened.
  at::Tensor rows_of_change(const at::Tensor& wide_a, int64_t row, int64_t rows) const;
  at::Tensor rows_of_sum(const models::Linear& host, const at::Tensor& wide_a, int64_t row, int64_t rows) const;
  // The norm of each. A constant: no gradient goes through it.
  at::Tensor row_norms(const models::Linear& host) const;
  bool drops(const models::Draws& draws) const { return draws.any() && shape_.dropout > 0; }
  // A x, or A of what is left of x.
  at::Tensor low(const at::Tensor& x, const at::Tensor& a, const models::Draws& draws) const;

  LowRankShape shape_;
};

}  // namespace limbeck::adapters
