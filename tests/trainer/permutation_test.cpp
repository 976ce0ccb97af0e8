// The order of samples: every sample once an epoch, another order in every epoch, no place preferred, and frozen.
#include "trainer/data/permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace limbeck::data {
namespace {

std::vector<int64_t> order(int64_t seed, int64_t epoch, int64_t size) {
  const Permutation permutation(seed, epoch, size);
  std::vector<int64_t> out;
  for (int64_t i = 0; i < size; ++i) out.push_back(permutation(i));
  return out;
}

TEST(Permutation, UsesEverySampleOnceWhateverTheSize) {
  for (const int64_t size : {1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 100, 1023, 1024, 1025, 40'000}) {
    auto found = order(7, 3, size);
    std::sort(found.begin(), found.end());
    std::vector<int64_t> all(static_cast<size_t>(size));
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(found, all) << size;
  }
}

TEST(Permutation, EpochAndSeedGiveOtherOrdersAndTheSameGiveTheSame) {
  const auto first = order(1, 0, 1000);
  EXPECT_EQ(order(1, 0, 1000), first);
  for (const auto& other : {order(1, 1, 1000), order(2, 0, 1000), order(-1, 0, 1000), order(0, 1, 1000)}) {
    int64_t same = 0;
    for (size_t i = 0; i < first.size(); ++i) same += first[i] == other[i];
    EXPECT_LT(same, 10);  // 1 is expected of two independent orders
  }
}

// Runs in progress resume by it, so a change here is a change of every order.
TEST(Permutation, IsFrozen) {
  EXPECT_EQ(order(42, 0, 12), (std::vector<int64_t>{8, 4, 11, 3, 7, 6, 2, 5, 1, 10, 0, 9}));
  EXPECT_EQ(order(42, 1, 12), (std::vector<int64_t>{10, 11, 6, 8, 5, 4, 3, 0, 1, 9, 2, 7}));
  EXPECT_EQ(Permutation(42, 5, int64_t{1} << 40)(123'456'789), 794'507'115'205);
}

TEST(Permutation, PrefersNoPlace) {
  // Where the first of n samples lands over 20,000 epochs; chi-square of n-1 degrees of freedom, bound at 5 sigma.
  for (const int64_t size : {2, 3, 5, 10, 33}) {
    const int64_t epochs = 20'000;
    std::vector<double> counts(static_cast<size_t>(size));
    for (int64_t epoch = 0; epoch < epochs; ++epoch) ++counts[static_cast<size_t>(Permutation(9, epoch, size)(0))];
    const double expected = static_cast<double>(epochs) / static_cast<double>(size);
    double chi = 0;
    for (const double count : counts) chi += (count - expected) * (count - expected) / expected;
    const double freedom = static_cast<double>(size - 1);
    EXPECT_LT(chi, freedom + 5 * std::sqrt(2 * freedom)) << size;
  }
}

TEST(Permutation, NeighboursDoNotStayTogether) {
  const auto found = order(3, 0, 10'000);
  int64_t together = 0;
  for (size_t i = 0; i + 1 < found.size(); ++i) together += std::abs(found[i] - found[i + 1]) == 1;
  EXPECT_LT(together, 20);  // 2 are expected
}

TEST(Permutation, RefusesWhatIsOutside) {
  EXPECT_THROW(Permutation(1, 0, 0), std::logic_error);
  EXPECT_THROW(Permutation(1, 0, 5)(5), std::out_of_range);
  EXPECT_THROW(Permutation(1, 0, 5)(-1), std::out_of_range);
}

}  // namespace
}  // namespace limbeck::data
