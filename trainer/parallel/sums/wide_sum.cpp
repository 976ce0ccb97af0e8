#include "trainer/parallel/sums/wide_sum.h"

#include <stdexcept>

#include "kernels/adamw/adamw.h"

namespace limbeck::parallel {

at::Tensor taken_gradient(const at::Tensor& parameter) {
  at::Tensor gradient = parameter.grad();
  parameter.mutable_grad().reset();
  return gradient.defined() ? gradient.detach() : gradient;
}

at::Tensor WideSum::add(at::Tensor leaf) {
  if (order_ == Order::kFast) {
    if (open_.empty()) {
      open_.emplace_back(0, std::move(leaf));
      return {};
    }
    kernels::accumulate_(open_.front().second, leaf);
    return leaf;
  }
  int level = 0;
  at::Tensor spare;
  for (; !open_.empty() && open_.back().first == level; ++level) {
    kernels::accumulate_(open_.back().second, leaf);
    spare = std::move(leaf);
    leaf = std::move(open_.back().second);
    open_.pop_back();
  }
  open_.emplace_back(level, std::move(leaf));
  return spare;
}

at::Tensor WideSum::take() {
  if (open_.empty()) return {};
  if (open_.size() != 1) throw std::logic_error("a tree of sums was read before all its leaves came");
  at::Tensor sum = std::move(open_.front().second);
  open_.clear();
  return sum;
}

}  // namespace limbeck::parallel
