#include "trainer/loop/checkpoint_plan.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/recipe_settings.h"

namespace limbeck::loop {
namespace {

CheckpointPlan plan(const test::RecipeKeys& keys) {
  return CheckpointPlan(read_checkpoint_options(test::recipe_settings(keys)));
}

TEST(CheckpointPlan, EverySoManyUpdatesWhateverTheClockSays) {
  const CheckpointPlan every = plan({{"checkpoint.every", "10"}});
  EXPECT_TRUE(every.due(10, 0.001) && every.due(20, 0.001));
  EXPECT_FALSE(every.due(11, 1e6));
}

TEST(CheckpointPlan, KeepingNoneMeansNone) {
  const CheckpointPlan none = plan({{"checkpoint.every", "10"}, {"checkpoint.keep", "0"}});
  EXPECT_FALSE(none.enabled() || none.due(10, 1e6));
}

TEST(CheckpointPlan, TheFirstOfItsOwnAccordComesAfterAMinute) {
  const CheckpointPlan automatic = plan({});
  EXPECT_FALSE(automatic.due(7, 59));
  EXPECT_TRUE(automatic.due(7, 60));
}

// Young and Daly: the root of twice the cost of one times the time between failures.
TEST(CheckpointPlan, ThenAsOftenAsTheCostIsWorth) {
  CheckpointPlan automatic = plan({{"checkpoint.mtbf", "2"}});
  automatic.saved(60);
  automatic.cost(/*standing_s=*/0.01, /*whole_s=*/4);
  EXPECT_DOUBLE_EQ(automatic.interval_s(), std::sqrt(2 * 4 * 7200.0));
  EXPECT_FALSE(automatic.due(100, 60 + 239));
  EXPECT_TRUE(automatic.due(100, 60 + 241));
}

TEST(CheckpointPlan, NeverForMoreThanItsShareOfTheTime) {
  CheckpointPlan automatic = plan({{"checkpoint.mtbf", "0.01"}, {"checkpoint.overhead", "0.05"}});
  automatic.cost(30, 31);
  EXPECT_DOUBLE_EQ(automatic.interval_s(), 600);  // 30 s of standing are 5 % of it
  automatic.cost(0, 1000);
  EXPECT_DOUBLE_EQ(automatic.interval_s(), 2000);  // one save does not begin while the last one is hardly over
}

}  // namespace
}  // namespace limbeck::loop
