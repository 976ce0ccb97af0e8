// Sums of gradients: the order of additions, bit by bit, and how many tensors are held for it.
#include "trainer/parallel/sums/wide_sum.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <bit>

namespace limbeck::parallel {
namespace {

std::vector<at::Tensor> leaves(int64_t count, at::ScalarType dtype = at::kFloat) {
  at::manual_seed(5);
  std::vector<at::Tensor> made;
  // Of sizes that differ, so that every order of additions rounds otherwise.
  for (int64_t i = 0; i < count; ++i) made.push_back(at::randn({333}, dtype) * std::pow(10.0, i % 5));
  return made;
}

at::Tensor sum_of(Order order, const std::vector<at::Tensor>& terms) {
  WideSum sum(order);
  for (const at::Tensor& term : terms) sum.add(term.clone());
  return sum.take();
}

at::Tensor pairwise(std::vector<at::Tensor> level) {
  while (level.size() > 1) {
    std::vector<at::Tensor> above;
    for (size_t i = 0; i < level.size(); i += 2) above.push_back(level[i] + level[i + 1]);
    level = above;
  }
  return level.front();
}

at::Tensor left_to_right(const std::vector<at::Tensor>& terms) {
  at::Tensor sum = terms.front().clone();
  for (size_t i = 1; i < terms.size(); ++i) sum = sum + terms[i];
  return sum;
}

TEST(WideSum, TreeAddsNeighboursFirst) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const int64_t count : {1, 2, 4, 8, 32}) {
      const auto terms = leaves(count, dtype);
      EXPECT_TRUE(sum_of(Order::kTree, terms).equal(pairwise(terms))) << count;
    }
  }
  const auto terms = leaves(8);
  EXPECT_FALSE(pairwise(terms).equal(left_to_right(terms))) << "these terms test nothing";
}

TEST(WideSum, TreeOfTreesIsTheTree) {
  const auto terms = leaves(16);
  for (const size_t share : {1, 2, 4, 8}) {
    std::vector<at::Tensor> sums;
    for (size_t i = 0; i < terms.size(); i += share) {
      sums.push_back(sum_of(
          Order::kTree, {terms.begin() + static_cast<int64_t>(i), terms.begin() + static_cast<int64_t>(i + share)}));
    }
    EXPECT_TRUE(sum_of(Order::kTree, sums).equal(pairwise(terms))) << share;
  }
}

TEST(WideSum, FastAddsFromLeftToRight) {
  for (const int64_t count : {1, 2, 3, 7, 8}) {
    const auto terms = leaves(count);
    EXPECT_TRUE(sum_of(Order::kFast, terms).equal(left_to_right(terms))) << count;
  }
}

TEST(WideSum, HoldsNoMoreTensorsThanTheTreeIsDeep) {
  for (const Order order : {Order::kTree, Order::kFast}) {
    WideSum sum(order);
    std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> given;
    for (uint64_t i = 1; i <= 64; ++i) {
      at::Tensor leaf = at::ones({4});
      given.emplace_back(c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(leaf.storage().unsafeGetStorageImpl()));
      at::Tensor spare = sum.add(std::move(leaf));
      spare.reset();
      const auto held = std::count_if(given.begin(), given.end(), [](const auto& one) { return !one.expired(); });
      const int bound = order == Order::kFast ? 1 : std::bit_width(i);  // log2 + 1
      ASSERT_LE(held, bound) << "after " << i << " leaves";
      if (i == 63) {
        ASSERT_EQ(held, bound) << "nothing was counted";
      }
    }
    EXPECT_EQ(sum.take().sum().item<float>(), 256);
  }
}

TEST(WideSum, GivesBackATensorToFillAgain) {
  for (const Order order : {Order::kTree, Order::kFast}) {
    WideSum sum(order);
    EXPECT_FALSE(sum.add(at::ones({2})).defined());
    EXPECT_TRUE(sum.add(at::ones({2})).defined());
  }
}

TEST(WideSum, BeginsAnewAfterItWasTakenAndRefusesHalfATree) {
  WideSum sum(Order::kTree);
  EXPECT_FALSE(sum.take().defined());
  sum.add(at::ones({1}));
  EXPECT_EQ(sum.take().item<float>(), 1);
  EXPECT_FALSE(sum.take().defined());
  for (int i = 0; i < 3; ++i) sum.add(at::ones({1}));
  EXPECT_THROW(sum.take(), std::logic_error);
}

}  // namespace
}  // namespace limbeck::parallel
