// Float32 logits of a head for a few rows at a time, whatever the storage dtypes: hidden states and weights are widened
// tile by tile before the GEMM, so that no logit is ever rounded to half precision and no N x V tensor exists.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <functional>

#include "trainer/objective/head/head_terms.h"

namespace limbeck::objective {

int64_t real_rows(const HeadSide& side);
at::Tensor widened(const at::Tensor& x, at::ScalarType wide, const std::string& place);

// Calls use(rows [b, b + n) of the weight in the wide dtype, b, n); one call when they are wide already.
void for_weight_tiles(const HeadSide& side, at::ScalarType wide,
                      const std::function<void(const at::Tensor& weight, int64_t begin, int64_t count)>& use);

// Real ids only, before the softcap.
at::Tensor wide_logits(const HeadSide& side, const at::Tensor& hidden_wide, at::ScalarType wide);
at::Tensor capped(const at::Tensor& logits, double softcap);

struct Chunk {
  int64_t begin, count;
  at::Tensor rows_n;  // of all tokens; undefined: [begin, begin + count)
  at::Tensor of(const at::Tensor& all) const {
    return rows_n.defined() ? all.index_select(0, rows_n) : all.narrow(0, begin, count);
  }
};

// Chunks of `rows` (undefined: of all `tokens`), small enough for their logits to stay in the cache's reach.
void for_chunks(const at::Tensor& rows, int64_t tokens, int64_t vocabulary,
                const std::function<void(const Chunk&)>& use);

// The rows of a bool mask; undefined when all are set, and on meta, where nobody knows.
at::Tensor chosen_rows(const at::Tensor& mask_n);

}  // namespace limbeck::objective
