#include "trainer/parallel/sums/tree_sum.h"

#include <ATen/ops/empty.h>

namespace limbeck::parallel {

// A pair shares the parts (one for each rank) that it holds by their lowest open bit, which is the bit of the rank:
// each keeps its own half of them and adds what the other held, so that part r ends at rank r.
void tree_reduce_scatter(const at::Tensor& shard, const at::Tensor& whole, int rank, int size,
                         const Exchange& exchange) {
  const int64_t length = whole.numel() / size;
  at::Tensor held = whole.view({size, length});
  for (int stage = 1; stage < size; stage *= 2) {
    const int64_t mine = (rank & stage) != 0 ? 1 : 0, parts = held.size(0) / 2;
    const at::Tensor pairs = held.view({parts, 2, length});
    const at::Tensor away = pairs.select(1, 1 - mine).contiguous();
    const at::Tensor arrived = at::empty({parts, length}, whole.options());
    exchange(away, arrived, rank ^ stage);
    // Addition commutes, so both of a pair get the same sums.
    held = arrived.add_(pairs.select(1, mine));
  }
  shard.copy_(held.view({length}));
}

}  // namespace limbeck::parallel
