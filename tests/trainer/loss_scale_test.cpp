#include "trainer/optim/loss_scale.h"

#include <gtest/gtest.h>

namespace limbeck::optim {
namespace {

TEST(LossScale, IsOneAndStaysWhereItIsNotNeeded) {
  LossScale scale;
  for (int i = 0; i < 5000; ++i) scale.update_was_good();
  scale.update_overflowed();
  EXPECT_EQ(scale.value(), 1.0);
  EXPECT_FALSE(scale.at_floor());
}

TEST(LossScale, HalvesAtAnOverflowAndDoublesAfterTheInterval) {
  LossScale scale({1024.0, 3, 1.0});
  scale.update_was_good();
  scale.update_was_good();
  scale.update_overflowed();  // the run of good updates starts anew
  EXPECT_EQ(scale.value(), 512.0);
  scale.update_was_good();
  scale.update_was_good();
  EXPECT_EQ(scale.value(), 512.0);
  scale.update_was_good();
  EXPECT_EQ(scale.value(), 1024.0);
  EXPECT_EQ(scale.good_updates(), 0);
}

TEST(LossScale, NeverFallsBelowItsFloor) {
  LossScale scale({65536.0, 2000, 3.0});
  for (int i = 0; i < 1000; ++i) scale.update_overflowed();
  EXPECT_EQ(scale.value(), 3.0);
  EXPECT_TRUE(scale.at_floor());
}

TEST(LossScale, StopsGrowingWhereFloat16HasNoUseForMore) {
  LossScale scale({1.0, 1, 1.0});
  for (int i = 0; i < 5000; ++i) scale.update_was_good();
  EXPECT_EQ(scale.value(), 0x1p40);
}

TEST(LossScale, ContinuesWhereItWas) {
  LossScale scale({65536.0, 3, 1.0});
  scale.restore(256.0, 2);
  scale.update_was_good();
  EXPECT_EQ(scale.value(), 512.0);
}

}  // namespace
}  // namespace limbeck::optim
