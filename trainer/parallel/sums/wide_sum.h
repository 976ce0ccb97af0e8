// Sums of gradients in the wide dtype: float32, or float64 for float64 weights.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "trainer/parallel/communicator.h"

namespace limbeck::parallel {

// The .grad of a parameter, which has none afterwards.
at::Tensor taken_gradient(const at::Tensor& parameter);

// The sum of a given number of equal tensors. With kTree it is that of a binary tree whose leaves come from left to
// right, which is the same whoever adds which of its aligned subtrees.
class WideSum {
 public:
  explicit WideSum(Order order) : order_(order) {}
  // Takes the tensor over; a tensor that is no longer needed comes back, to be filled again.
  at::Tensor add(at::Tensor leaf);
  // What was added since the last call; undefined: nothing. With kTree the number of leaves was a power of two.
  at::Tensor take();

 private:
  Order order_;
  std::vector<std::pair<int, at::Tensor>> open_;  // level and sum of the subtrees that have no right neighbour yet
};

}  // namespace limbeck::parallel
