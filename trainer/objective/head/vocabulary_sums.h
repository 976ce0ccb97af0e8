// Sums over the ids of a vocabulary, of which a rank may hold a slice: what the formulas of a row reduce with, so that
// each is written once. This class holds all ids; vocabulary_parallel.cpp has the one that adds up the ranks' slices.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace limbeck::objective {

class VocabularySums {
 public:
  virtual ~VocabularySums() = default;

  // From each slice's numbers of every row, [n, k], those of the whole vocabulary.
  virtual at::Tensor total(const at::Tensor& of_slice_nk) const { return of_slice_nk; }
  virtual at::Tensor most(const at::Tensor& of_slice_nk) const { return of_slice_nk; }
  virtual int64_t ids(int64_t in_slice) const { return in_slice; }     // of the whole vocabulary
  virtual int64_t widest(int64_t in_slice) const { return in_slice; }  // of all slices
  virtual int64_t first() const { return 0; }                          // the id of the slice's first column

  at::Tensor sum(const at::Tensor& x_nv) const;      // [n, 1]
  at::Tensor highest(const at::Tensor& x_nv) const;  // [n, 1]
};

const VocabularySums& all_ids();

}  // namespace limbeck::objective
