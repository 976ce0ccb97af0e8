// Head terms by row chunks of float32 logits, over a whole vocabulary or a rank's slice of one: values of every token
// and gradients in the wide dtype, made in the forward. What head_terms.cpp and vocabulary_parallel.cpp share.
#pragma once
#include "trainer/objective/head/head_terms.h"
#include "trainer/objective/head/vocabulary_sums.h"

namespace limbeck::objective {

// Gradients of one side, gathered over the chunks in the wide dtype.
struct SideGradients {
  bool hidden = false, weight = false;  // wanted
  at::Tensor hidden_nd, weight_vd;

  bool any() const { return hidden || weight; }
  void allocate(const HeadSide& side, at::ScalarType wide, bool trains);
  // Rows are those of the chunk: `rows_n` when the chunk was picked out of all tokens, else [begin, begin + n).
  void add(const HeadSide& side, const at::Tensor& gradient_nv, const at::Tensor& hidden_wide, const at::Tensor& rows_n,
           int64_t begin, at::ScalarType wide);
};

struct ChunkedHead {
  at::Tensor divergence_n, cross_entropy_n;  // 0 where the token's weight is 0
  SideGradients student, teacher;
};

// Both heads' weights hold the ids that `over` says; labels are ids of the whole vocabulary.
ChunkedHead chunked_head(const HeadRequest& request, const VocabularySums& over);

// The weighted sum of a head's terms, whose gradients are known: backward scales them in the wide dtype and rounds
// once.
at::Tensor loss_with_gradients(const at::Tensor& loss, const HeadRequest& request, const SideGradients& student,
                               const SideGradients& teacher);

}  // namespace limbeck::objective
