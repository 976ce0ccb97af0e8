// The sum of Order::kTree: pairs of neighbouring ranks first, so that every element is summed by the same tree whatever
// the number of ranks. Written once for all bodies of Communicator, which bring the exchange between two ranks.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

namespace limbeck::parallel {

// Sends to a partner and receives as much from it; `receive` may be used when it returns.
using Exchange = std::function<void(const at::Tensor& send, const at::Tensor& receive, int partner)>;

// Leaves in `shard` this rank's part of the sum of `whole` over `size` ranks, a power of two.
void tree_reduce_scatter(const at::Tensor& shard, const at::Tensor& whole, int rank, int size,
                         const Exchange& exchange);

}  // namespace limbeck::parallel
