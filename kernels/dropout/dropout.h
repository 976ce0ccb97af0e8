// Dropout whose mask is a function of a key, the number of a token and the place in its row: there is no generator to
// restore and no mask to keep, backward makes it again.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace limbeck::kernels {

struct DropoutMask {
  at::Tensor tokens;  // int64, one for each row of x; rows of the same number have the same mask
  uint64_t key = 0;   // of the seed and of who drops: key_of()
  double rate = 0;    // of zeros, in [0, 1)
};

// x [..., F]: each element becomes 0 or is multiplied by 1 / (1 - rate).
at::Tensor dropout(const at::Tensor& x, const DropoutMask& mask);

// linear(dropout(x, mask), weight). What it keeps for backward is x, which others keep as well, not what is left of it.
at::Tensor dropped_linear(const at::Tensor& x, const at::Tensor& weight, const DropoutMask& mask);

}  // namespace limbeck::kernels
