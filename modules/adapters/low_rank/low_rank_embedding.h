// LoRA on an embedding, y = E[id] + s B A[:, id], and DoRA, m / |E + s (B A)^T| times that, with a norm for each
// column.
#pragma once
#include "modules/adapters/low_rank/low_rank.h"

namespace limbeck::adapters {

// Parameters: lora_embedding_A [rank, rows], lora_embedding_B [width, rank]; DoRA also lora_magnitude_vector [width].
class LowRankEmbedding : public models::EmbeddingAdapter {
 public:
  // in: the rows of the table, out: its width.
  LowRankEmbedding(const precision::Scope& scope, const precision::Precision& host, const LowRankShape& shape);
  at::Tensor forward(const at::Tensor& ids, const models::Embedding& host) const override;
  models::MergedWeight merged(const models::Embedding& host) const override;
  models::UnmergedWeight unmerged(const models::Embedding& host) const override;
  std::string unmerge_fault() const override;
  // As PEFT: A zero, B of variance 1; the magnitude that of E.
  void initialize(const models::Embedding& host, uint64_t seed) override;

 private:
  // Rows of s (B A)^T and of E + s (B A)^T, wide, without a gradient.
  at::Tensor rows_of_change(int64_t row, int64_t rows) const;
  at::Tensor rows_of_sum(const models::Embedding& host, int64_t row, int64_t rows) const;
  at::Tensor column_norms(const models::Embedding& host) const;

  LowRankShape shape_;
};

}  // namespace limbeck::adapters
