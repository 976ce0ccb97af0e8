#include "trainer/optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "trainer/optim/optimizer_options.h"
#include "trainer/recipe/recipe_options.h"

namespace limbeck::optim {
namespace {

Schedule schedule(ScheduleKind kind) { return {kind, 100, 10, 0.1, 0.2}; }

TEST(Schedule, EveryKindRisesEvenlyInItsWarmup) {
  for (const ScheduleKind kind :
       {ScheduleKind::kConstant, ScheduleKind::kLinear, ScheduleKind::kCosine, ScheduleKind::kWsd}) {
    for (int64_t step = 0; step < 10; ++step) {
      EXPECT_DOUBLE_EQ(schedule(kind).factor(step), static_cast<double>(step + 1) / 10.0);
    }
    EXPECT_DOUBLE_EQ(schedule(kind).factor(10), 1.0);
  }
}

TEST(Schedule, AWarmupIsUpdatesOrTheirShareRoundedUp) {
  recipe::OptionTable table;
  recipe::declare_recipe_options(table);
  const auto warmup = [&](const std::string& text, int64_t total) {
    const auto flags = table.parse({"--optim.warmup=" + text}, "test").flags;
    return read_optimizer_options(recipe::Settings(table, nullptr, flags), total).schedule.warmup_steps;
  };
  EXPECT_EQ(warmup("7 steps", 100), 7);
  EXPECT_EQ(warmup("3 %", 1000), 30);
  EXPECT_EQ(warmup("0.03", 1000), 30);
  EXPECT_EQ(warmup("3 %", 1001), 31);
  EXPECT_EQ(warmup("0.0", 1000), 0);
  EXPECT_EQ(warmup("100 %", 9'000'000'000'000'000), 9'000'000'000'000'000);
}

TEST(Schedule, ConstantStays) {
  EXPECT_EQ(schedule(ScheduleKind::kConstant).factor(99), 1.0);
  EXPECT_EQ(schedule(ScheduleKind::kConstant).factor(100000), 1.0);
}

TEST(Schedule, LinearAndCosineFallFromWarmupToEnd) {
  const Schedule linear = schedule(ScheduleKind::kLinear), cosine = schedule(ScheduleKind::kCosine);
  EXPECT_DOUBLE_EQ(linear.factor(55), 0.55);  // half way: between 1 and 0.1
  EXPECT_DOUBLE_EQ(cosine.factor(55), 0.55);
  EXPECT_DOUBLE_EQ(cosine.factor(40), 0.1 + 0.9 * 0.5 * (1.0 + std::cos(std::numbers::pi / 3.0)));
  for (const Schedule& s : {linear, cosine}) {
    for (int64_t step = 10; step < 100; ++step) EXPECT_GT(s.factor(step), s.factor(step + 1));
    EXPECT_NEAR(s.factor(100), 0.1, 1e-15);
    EXPECT_NEAR(s.factor(5000), 0.1, 1e-15);
  }
}

TEST(Schedule, WsdIsStableThenFallsInItsLastShare) {
  const Schedule s = schedule(ScheduleKind::kWsd);
  for (int64_t step = 10; step <= 80; ++step) EXPECT_EQ(s.factor(step), 1.0);
  EXPECT_DOUBLE_EQ(s.factor(90), 0.55);
  EXPECT_NEAR(s.factor(100), 0.1, 1e-15);
}

TEST(Schedule, DegenerateLengthsAreFinite) {
  EXPECT_EQ((Schedule{ScheduleKind::kCosine, 1, 0, 0.0, 0.1}).factor(0), 1.0);
  EXPECT_EQ((Schedule{ScheduleKind::kWsd, 10, 10, 0.0, 1.0}).factor(9), 1.0);
  EXPECT_EQ((Schedule{ScheduleKind::kWsd, 10, 10, 0.0, 1.0}).factor(10), 0.0);
  EXPECT_EQ((Schedule{ScheduleKind::kLinear, 0, 0, 0.5, 0.1}).factor(0), 0.5);
  EXPECT_DOUBLE_EQ((Schedule{ScheduleKind::kLinear, 5, 50, 0.5, 0.1}).factor(4), 0.1);  // warmup beyond the end
}

}  // namespace
}  // namespace limbeck::optim
