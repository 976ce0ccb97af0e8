#include "tests/trainer/communicator_cases.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <stdexcept>

namespace limbeck::test {

using parallel::Communicator;
using parallel::Order;

std::vector<at::Tensor> uneven_leaves(int count, int64_t length) {
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(11);
  std::vector<at::Tensor> leaves;
  for (int i = 0; i < count; ++i) {
    const at::Tensor size = at::exp(3 * at::empty({length}, at::kFloat).normal_(0, 1, generator));
    leaves.push_back(size * at::empty({length}, at::kFloat).normal_(0, 1, generator));
  }
  return leaves;
}

std::string wrong_operation(Communicator& ranks, c10::Device device) {
  constexpr int64_t kShard = 37;
  const int64_t size = ranks.size(), rank = ranks.rank(), length = size * kShard;
  const bool pairs = (size & (size - 1)) == 0;
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kLong}) {
    const auto named = [&](const char* what) { return fmt::format("{} of {}", what, c10::toString(dtype)); };
    // Small whole numbers: every sum is exact, in whatever order.
    const auto of_rank = [&](int64_t r) { return at::arange(length, at::kLong).mul(r + 1).remainder(13).to(dtype); };
    at::Tensor sum = at::zeros({length}, at::kLong).to(dtype), gathered = at::empty({length}, at::kLong).to(dtype);
    for (int64_t r = 0; r < size; ++r) {
      sum += of_rank(r);
      gathered.narrow(0, r * kShard, kShard).copy_(of_rank(r).narrow(0, 0, kShard));
    }
    const at::Tensor mine = of_rank(rank).to(device);
    const at::Tensor whole = at::zeros_like(mine);
    ranks.all_gather(whole, mine.narrow(0, 0, kShard).clone(), "test")->wait();
    if (!at::equal(whole.cpu(), gathered)) return named("all_gather");
    whole.zero_();
    const at::Tensor part = whole.narrow(0, rank * kShard, kShard);
    part.copy_(mine.narrow(0, 0, kShard));
    ranks.all_gather(whole, part, "test")->wait();
    if (!at::equal(whole.cpu(), gathered)) return named("all_gather in place");
    for (const Order order : {Order::kFast, Order::kTree}) {
      if (order == Order::kTree && !pairs) continue;
      const at::Tensor shard = at::empty_like(part);
      ranks.reduce_scatter(shard, mine.clone(), order, "test")->wait();
      if (!at::equal(shard.cpu(), sum.narrow(0, rank * kShard, kShard))) return named("reduce_scatter");
      const at::Tensor reduced = mine.clone();
      ranks.all_reduce(reduced, order, "test")->wait();
      if (!at::equal(reduced.cpu(), sum)) return named("all_reduce");
    }
  }
  return "";
}

at::Tensor tree_sum(Communicator& ranks, const std::vector<at::Tensor>& leaves, c10::Device device) {
  const size_t own = leaves.size() / static_cast<size_t>(ranks.size()), first = own * static_cast<size_t>(ranks.rank());
  std::vector<at::Tensor> open;
  for (size_t i = 0; i < own; ++i) open.push_back(leaves[first + i].to(device));
  for (; open.size() > 1; open.resize(open.size() / 2)) {
    for (size_t i = 0; i < open.size() / 2; ++i) open[i] = open[2 * i] + open[2 * i + 1];
  }
  const at::Tensor whole = open[0].clone(), gathered = at::empty_like(whole);
  const at::Tensor shard = at::empty({whole.numel() / ranks.size()}, whole.options());
  ranks.reduce_scatter(shard, open[0].clone(), Order::kTree, "test")->wait();
  ranks.all_gather(gathered, shard, "test")->wait();
  ranks.all_reduce(whole, Order::kTree, "test")->wait();
  if (!at::equal(whole, gathered)) throw std::logic_error("all_reduce and reduce_scatter sum differently");
  return whole.cpu();
}

}  // namespace limbeck::test
