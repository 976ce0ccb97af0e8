// Where dropout's bits come from in one forward of training: a seed and the number of each token. Whoever runs a part
// of the forward again, on whatever rank, in whatever micro-batch, draws the same.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "kernels/dropout/dropout.h"

namespace limbeck::models {

struct Draws {
  uint64_t seed = 0;
  at::Tensor token_n;  // int64, one a token, row after row; undefined: nothing is dropped

  bool any() const { return token_n.defined(); }
  // Of the module at `path`.
  kernels::DropoutMask mask(const std::string& path, double rate) const;
  // Of the first token of each of so many rows.
  Draws of_first_tokens(int64_t rows) const;
};

// Of a batch [rows, length] whose first row has the number `first_row` among all since training began.
Draws draws_of(uint64_t seed, int64_t first_row, at::IntArrayRef batch_shape, c10::Device device);
// The same of a number that lies on the device, 0-dim int64.
Draws draws_of(uint64_t seed, const at::Tensor& first_row, at::IntArrayRef batch_shape);

}  // namespace limbeck::models
