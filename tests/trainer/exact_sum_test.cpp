// Sums that do not depend on the order of their terms, against sums that are exact by other means.
#include "trainer/parallel/sums/exact_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/support/thread_ranks.h"

namespace limbeck::parallel {
namespace {

using Limits = std::numeric_limits<double>;

double exact(const std::vector<double>& terms) {
  ExactSum sum;
  for (const double term : terms) sum.add(term);
  return sum.value();
}

// Shewchuk's: partials that do not overlap hold the sum without rounding; as in Python's math.fsum.
double fsum(const std::vector<double>& terms) {
  std::vector<double> partials;
  for (double x : terms) {
    std::vector<double> kept;
    for (double y : partials) {
      if (std::abs(x) < std::abs(y)) std::swap(x, y);
      const double high = x + y, low = y - (high - x);
      if (low != 0) kept.push_back(low);
      x = high;
    }
    kept.push_back(x);
    partials = kept;
  }
  double high = 0, low = 0;
  while (!partials.empty() && low == 0) {
    const double x = high, y = partials.back();
    partials.pop_back();
    high = x + y;
    low = y - (high - x);
  }
  // Half way between two doubles, what is left decides.
  if (low != 0 && !partials.empty() && (low < 0) == (partials.back() < 0)) {
    const double twice = low * 2, up = high + twice;
    if (twice == up - high) high = up;
  }
  return high;
}

std::vector<double> wide_terms(std::mt19937_64& random, size_t count, int lowest, int highest) {
  std::uniform_int_distribution<int> exponent(lowest, highest);
  std::uniform_real_distribution<double> mantissa(-1, 1);
  std::vector<double> terms(count);
  for (double& term : terms) term = std::ldexp(mantissa(random), exponent(random));
  return terms;
}

TEST(ExactSum, IsTheSameInEveryOrderAndRoundedOnce) {
  std::mt19937_64 random(7);
  for (const auto& [lowest, highest] : {std::pair{-3, 3}, {-60, 60}, {-1074, -1000}, {-1074, 900}}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<double> terms = wide_terms(random, 200, lowest, highest);
      const double wanted = fsum(terms);
      for (int order = 0; order < 10; ++order) {
        ASSERT_EQ(exact(terms), wanted) << lowest << " " << highest << " " << round;
        std::shuffle(terms.begin(), terms.end(), random);
      }
    }
  }
}

TEST(ExactSum, DiffersFromTheOrdinarySumWhereThatRounds) {
  std::mt19937_64 random(7);
  std::vector<double> terms = wide_terms(random, 2000, -30, 30);
  const double forward = std::accumulate(terms.begin(), terms.end(), 0.0);
  std::reverse(terms.begin(), terms.end());
  EXPECT_NE(forward, std::accumulate(terms.begin(), terms.end(), 0.0)) << "these terms test nothing";
}

TEST(ExactSum, CancelsWithoutATrace) {
  EXPECT_EQ(exact({1e300, 1, -1e300}), 1);
  EXPECT_EQ(exact({1e300, -1e-300, -1e300}), -1e-300);
  EXPECT_EQ(exact({Limits::max(), Limits::denorm_min(), -Limits::max()}), Limits::denorm_min());
  std::mt19937_64 random(3);
  std::vector<double> terms = wide_terms(random, 500, -1074, 1000);
  for (size_t i = 0; i < 500; ++i) terms.push_back(-terms[i]);
  std::shuffle(terms.begin(), terms.end(), random);
  EXPECT_EQ(exact(terms), 0);
}

TEST(ExactSum, KeepsDenormalsHugeNumbersAndNegativeTotals) {
  const double tiny = Limits::denorm_min();
  EXPECT_EQ(exact({tiny}), tiny);
  EXPECT_EQ(exact({tiny, tiny, tiny}), 3 * tiny);
  EXPECT_EQ(exact({-tiny}), -tiny);
  EXPECT_EQ(exact({Limits::min(), -tiny}), Limits::min() - tiny);
  EXPECT_EQ(exact({Limits::max()}), Limits::max());
  EXPECT_EQ(exact({-Limits::max()}), -Limits::max());
  EXPECT_EQ(exact({Limits::max(), Limits::max(), -Limits::max()}), Limits::max()) << "infinite on the way";
  EXPECT_EQ(exact({Limits::max(), Limits::max()}), Limits::infinity());
  EXPECT_EQ(exact({-1, 0.25}), -0.75);
  EXPECT_EQ(exact({}), 0);
  EXPECT_EQ(exact({0.0, -0.0}), 0);
}

TEST(ExactSum, RoundsTiesToEvenAndSeesWhatBreaksThem) {
  const double half = 0x1p-53;  // of the last place of 1
  EXPECT_EQ(exact({1, half}), 1);
  EXPECT_EQ(exact({1, half, Limits::denorm_min()}), 1 + Limits::epsilon());
  EXPECT_EQ(exact({1, half, -Limits::denorm_min()}), 1);
  EXPECT_EQ(exact({1 + Limits::epsilon(), half}), 1 + 2 * Limits::epsilon());
  EXPECT_EQ(exact({-1, -half, -Limits::denorm_min()}), -1 - Limits::epsilon());
}

TEST(ExactSum, IsNotANumberOnceATermWasNot) {
  EXPECT_TRUE(std::isnan(exact({1, Limits::infinity()})));
  EXPECT_TRUE(std::isnan(exact({Limits::quiet_NaN(), 2})));
  EXPECT_TRUE(std::isnan(exact({Limits::infinity(), -Limits::infinity()})));
  ExactSum sum, spoiled;
  spoiled.add(Limits::infinity());
  sum.add(spoiled);
  EXPECT_TRUE(std::isnan(sum.value()));
}

TEST(ExactSum, OfSumsAndOfRanksIsThatOfAllTerms) {
  std::mt19937_64 random(11);
  const std::vector<double> terms = wide_terms(random, 240, -1074, 900);
  const double wanted = fsum(terms);
  for (const int ranks : {1, 2, 3, 8}) {
    const auto failures = test::run_ranks(ranks, [&](Communicator& communicator) {
      ExactSum first, second, both;
      for (size_t i = static_cast<size_t>(communicator.rank()); i < terms.size(); i += static_cast<size_t>(ranks)) {
        (i % 5 == 0 ? first : second).add(terms[i]);
      }
      both.add(second);
      both.add(first);
      all_reduce(communicator, {&first, &both});
      if (both.value() != wanted) throw std::runtime_error("another sum");
    });
    for (const std::string& failure : failures) EXPECT_EQ(failure, "") << ranks;
  }
}

}  // namespace
}  // namespace limbeck::parallel
