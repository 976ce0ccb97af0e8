// What a sweep calls a drop, how sure it is of it, and which candidates it takes.
#include <gtest/gtest.h>

#include <cmath>

#include "trainer/sweep/selection.h"
#include "trainer/sweep/sweep_result.h"

namespace limbeck::sweep {
namespace {

// A row of a classifier is right or not.
Rows rows_right(const std::string& marks) {
  Rows rows;
  for (const char mark : marks) rows.push_back({1, mark == '+' ? 1.0 : 0.0, 0.1, 0.01, 0.04, 4});
  return rows;
}

TEST(SweepStatistics, McNemarIsTheBinomialTestOfDiscordantRows) {
  EXPECT_DOUBLE_EQ(mcnemar_exact(0, 0), 1);
  EXPECT_DOUBLE_EQ(mcnemar_exact(0, 5), 2.0 / 32);
  EXPECT_DOUBLE_EQ(mcnemar_exact(1, 9), 2.0 * (1 + 10) / 1024);
  EXPECT_DOUBLE_EQ(mcnemar_exact(9, 1), mcnemar_exact(1, 9));
  EXPECT_DOUBLE_EQ(mcnemar_exact(3, 3), 1);
}

TEST(SweepStatistics, PairedTHasTheClosedFormOfTwoDegreesOfFreedom) {
  // Mean 2, deviation 1: t = 2 sqrt(3), and of two degrees of freedom p = 1 - t / sqrt(t^2 + 2).
  const double t = 2 * std::sqrt(3.0);
  EXPECT_NEAR(paired_t({1, 2, 3}), 1 - t / std::sqrt(t * t + 2), 1e-14);
  EXPECT_NEAR(paired_t({-1, -2, -3}), paired_t({1, 2, 3}), 1e-15);
  // Of one degree it is Cauchy's: p = 1 - 2 atan(t) / pi, here with t = 3.
  EXPECT_NEAR(paired_t({1, 2}), 1 - 2 * std::atan(3.0) / std::acos(-1.0), 1e-14);
  EXPECT_DOUBLE_EQ(paired_t({0, 0, 0}), 1);
  EXPECT_DOUBLE_EQ(paired_t({5}), 1);
}

TEST(SweepStatistics, NothingLostInAHundredRowsStillAllowsThreeAndAHalfPoints) {
  EXPECT_NEAR(largest_share(0, 100), 1 - std::pow(0.025, 0.01), 1e-12);
  EXPECT_DOUBLE_EQ(largest_share(7, 7), 1);
  const Rows floats = rows_right(std::string(100, '+'));
  const Drop drop = PairedRows(Kind::kClassifier, floats).drop(floats);
  EXPECT_EQ(drop.value, 0);
  EXPECT_EQ(drop.p, 1);
  EXPECT_NEAR(drop.high, 3.62, 0.01);
  SweepResult result;
  result.rows = 100, result.max_drop = 1;
  EXPECT_FALSE(result.is_safe(drop));
}

TEST(SweepStatistics, DropOfAccuracyIsInPointsAndCountsWhatChanged) {
  const Rows floats = rows_right("++++++++--"), other = rows_right("+++++++-+-");
  const PairedRows pairs(Kind::kClassifier, floats);
  EXPECT_DOUBLE_EQ(quality_of(Kind::kClassifier, floats), 80);
  EXPECT_DOUBLE_EQ(pairs.drop(other).value, 0);  // one lost, one won
  EXPECT_DOUBLE_EQ(pairs.drop(other).p, 1);
  const Rows worse = rows_right("+++-------");
  const Drop drop = pairs.drop(worse);
  EXPECT_DOUBLE_EQ(drop.value, 50);
  EXPECT_DOUBLE_EQ(drop.p, 2.0 / 32);
  EXPECT_LT(drop.low, 50);
  EXPECT_GT(drop.high, 50);
  EXPECT_DOUBLE_EQ(pairs.sum_of_drops({&worse, &other, &worse}).value, 100);
  EXPECT_DOUBLE_EQ(logit_error(worse), 0.1);
  EXPECT_DOUBLE_EQ(mean_kl(worse), 0.01);
}

TEST(SweepStatistics, DropOfPerplexityIsInPercentOverTargets) {
  const Rows floats = {{3, 0, 6, 0, 0, 9}, {1, 0, 2, 0, 0, 3}, {0, 0, 0, 0, 0, 0}};
  Rows other = floats;
  for (RowMeasure& row : other) row.loss += static_cast<double>(row.targets) * std::log(1.02);
  const PairedRows pairs(Kind::kDecoder, floats);
  const Drop drop = pairs.drop(other);
  EXPECT_NEAR(quality_of(Kind::kDecoder, floats), std::exp(2), 1e-12);
  EXPECT_NEAR(drop.value, 2, 1e-12);
  EXPECT_NEAR(drop.low, 2, 1e-12);  // every row lost as much a target
  EXPECT_NEAR(drop.high, 2, 1e-12);
}

MeasuredCandidate candidate(const std::string& module, const std::string& format, int64_t saved, double drop,
                            double kl = 0) {
  MeasuredCandidate one{{module, "mlp", format, 1, {"student." + module + " " + format}}};
  one.cost.bytes_before = saved * (1 << 20);
  one.drop.value = drop;
  one.kl = kl;
  return one;
}

std::vector<std::string> order_of(const std::vector<MeasuredCandidate>& all, bool selected_alone = false) {
  std::vector<std::string> keys;
  for (const MeasuredCandidate& one : all) {
    if (one.selected || !selected_alone) keys.push_back(one.candidate.key());
  }
  return keys;
}

TEST(SweepSelection, TakesTheMedianAndMoreThatLoseLittleByTheirScore) {
  std::vector<MeasuredCandidate> all = {candidate("a", "float16", 1, 0), candidate("b", "float16", 8, 1.5),
                                        candidate("c", "float16", 6, 1), candidate("d", "float16", 4, -0.5),
                                        candidate("e", "float16", 5, 0.25)};
  select(all, {});
  EXPECT_EQ(order_of(all), (std::vector<std::string>{"e float16", "b float16", "c float16", "d float16", "a float16"}));
  EXPECT_EQ(order_of(all, true), (std::vector<std::string>{"e float16", "c float16"}));
  EXPECT_DOUBLE_EQ(all[0].score, 4);
  select(all, {.most = 1});
}

TEST(SweepSelection, PutsWhatFailedLastAndTakesOneFormatOfAModuleAndNoLayer) {
  std::vector<MeasuredCandidate> all = {candidate("a", "float16", 4, 0),      candidate("a", "int8", 6, 0.1),
                                        candidate("b", "float16", 4, 0, 0.5), candidate("x", "float16", 90, 0),
                                        candidate("y", "float16", 95, 0),     candidate("layers.0", "float16", 99, 0)};
  all[3].status = Status::kFailed, all[4].status = Status::kOverflowed;
  all[5].candidate.role = "block";
  select(all, {});
  EXPECT_EQ(order_of(all), (std::vector<std::string>{"layers.0 float16", "a int8", "a float16", "b float16",
                                                     "y float16", "x float16"}));
  EXPECT_EQ(order_of(all, true), (std::vector<std::string>{"a int8", "b float16"}));
  EXPECT_TRUE(all[0].pareto);
  EXPECT_FALSE(all[3].pareto) << "a int8 saves more and moves less";
  EXPECT_FALSE(all[4].pareto || all[5].pareto) << "failed";
  EXPECT_EQ(rules_of_selected(all, {all[3].candidate, all[1].candidate}),
            (std::vector<std::string>{"student.b float16", "student.a int8"}));
}

}  // namespace
}  // namespace limbeck::sweep
