// Tensor operations of a Communicator held against the same thing done on the CPU in one place: for Gloo's tests and
// NCCL's.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "trainer/parallel/communicator.h"

namespace limbeck::test {

// Numbers of very different sizes, so that another order of sums has other bits.
std::vector<at::Tensor> uneven_leaves(int count, int64_t length);

// all_gather, in place too, reduce_scatter, all_reduce by both orders, in float32, float64, bfloat16 and int64; "" or
// which operation differs.
std::string wrong_operation(parallel::Communicator& ranks, c10::Device device);

// This rank's run of `leaves` summed by pairs, then over the ranks by Order::kTree: once by all_reduce and once by
// reduce_scatter and all_gather, which must agree. On the CPU.
at::Tensor tree_sum(parallel::Communicator& ranks, const std::vector<at::Tensor>& leaves, c10::Device device);

}  // namespace limbeck::test
