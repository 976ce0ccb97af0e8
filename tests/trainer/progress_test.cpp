#include "trainer/cli/console/progress.h"

#include <gtest/gtest.h>

#include <sstream>

namespace limbeck::cli {
namespace {

struct Scene {
  double now = 100;
  std::ostringstream out;
  ProgressStyle style(int width, bool quiet = false) {
    ProgressStyle style;
    style.width = width;
    style.quiet = quiet;
    style.clock = [this] { return now; };
    return style;
  }
};

TEST(Progress, RedrawsOneLineOnATerminal) {
  Scene scene;
  Progress progress(scene.out, "train", "steps", 200, scene.style(100));
  scene.now = 110;
  progress.update(50, "loss 2.31");
  EXPECT_EQ(scene.out.str(), "\rtrain  [######------------------] 50/200 steps  5.0 steps/s  ETA 0:30  loss 2.31");
  scene.now = 140;
  progress.update(200);
  progress.finish();
  const std::string text = scene.out.str();
  EXPECT_NE(text.find("\rtrain  [########################] 200/200 steps  5.0 steps/s  in 0:40"), std::string::npos)
      << text;
  EXPECT_EQ(text.back(), '\n');
}

TEST(Progress, LeavesATerminalsLineToOthersAndComesBack) {
  Scene scene;
  Progress progress(scene.out, "x", "steps", 0, scene.style(100));
  progress.clear();
  EXPECT_EQ(scene.out.str(), "") << "nothing is drawn yet";
  scene.now += 1;
  progress.update(1);
  const std::string drawn = scene.out.str();
  progress.clear();
  EXPECT_EQ(scene.out.str(), drawn + "\r" + std::string(drawn.size() - 1, ' ') + "\r");
  scene.out.str("");
  scene.now += 1;
  progress.update(2);
  EXPECT_EQ(scene.out.str().substr(0, 12), "\rx  2 steps ");

  Scene log;
  Progress lines(log.out, "x", "steps", 0, log.style(0));
  log.now += 20;
  lines.update(1);
  const std::string plain = log.out.str();
  lines.clear();
  EXPECT_EQ(log.out.str(), plain) << "a log has lines already";
}

TEST(Progress, WhatWasDoneBeforeIsNoPartOfTheRate) {
  Scene scene;
  ProgressStyle style = scene.style(100);
  style.before = 150;
  Progress progress(scene.out, "train", "steps", 200, style);
  scene.now += 5;
  progress.update(175);
  EXPECT_NE(scene.out.str().find("175/200 steps  5.0 steps/s  ETA 0:05"), std::string::npos) << scene.out.str();
}

TEST(Progress, LeavesNothingOfALongerLineBehind) {
  Scene scene;
  Progress progress(scene.out, "x", "steps", 0, scene.style(100));
  scene.now += 1;
  progress.update(1, "a long remark");
  const size_t first = scene.out.str().size() - 1;
  scene.now += 1;
  progress.update(2);
  EXPECT_EQ(scene.out.str().size(), 2 * (first + 1));
}

TEST(Progress, FitsTheTerminal) {
  Scene scene;
  Progress progress(scene.out, "train", "steps", 200, scene.style(30));
  scene.now += 1;
  progress.update(50, "caf\xC3\xA9");
  EXPECT_EQ(scene.out.str().size(), 1u + 29u);
}

TEST(Progress, DrawsAtMostTenTimesASecond) {
  Scene scene;
  Progress progress(scene.out, "x", "steps", 1000, scene.style(80));
  for (int i = 1; i <= 1000; ++i) {
    scene.now = 100 + i * 0.001;
    progress.update(i);
  }
  const std::string text = scene.out.str();
  const auto draws = std::count(text.begin(), text.end(), '\r');
  EXPECT_GE(draws, 9);
  EXPECT_LE(draws, 11);
}

TEST(Progress, PrintsPlainLinesNowAndThenElsewhere) {
  Scene scene;
  Progress progress(scene.out, "train", "steps", 200, scene.style(0));
  for (int i = 1; i <= 100; ++i) {
    scene.now = 100 + i * 0.25;
    progress.update(i);
  }
  progress.finish("loss 1.5");
  EXPECT_EQ(scene.out.str(),
            "train  40/200 steps  4.0 steps/s  ETA 0:40\n"
            "train  80/200 steps  4.0 steps/s  ETA 0:30\n"
            "train  100/200 steps  4.0 steps/s  in 0:25  loss 1.5\n");
}

TEST(Progress, WithoutATotalThereIsNoBarAndNoEta) {
  Scene scene;
  Progress progress(scene.out, "read", "records", 0, scene.style(80));
  scene.now += 2;
  progress.update(1000);
  EXPECT_EQ(scene.out.str(), "\rread  1000 records  500 records/s");
}

TEST(Progress, AnExceptionLeavesAFreshLineForItsMessage) {
  Scene scene;
  {
    Progress progress(scene.out, "x", "steps", 10, scene.style(80));
    scene.now += 1;
    progress.update(1);
  }
  EXPECT_EQ(scene.out.str().back(), '\n');
}

TEST(Progress, QuietIsSilent) {
  Scene scene;
  for (const int width : {0, 80}) {
    Progress progress(scene.out, "x", "steps", 10, scene.style(width, true));
    scene.now += 100;
    progress.update(5);
    progress.finish();
  }
  EXPECT_EQ(scene.out.str(), "");
}

TEST(Progress, ClockTextGrowsWithTheTime) {
  EXPECT_EQ(clock_text(7.4), "0:07");
  EXPECT_EQ(clock_text(754), "12:34");
  EXPECT_EQ(clock_text(18001), "5:00:01");
  EXPECT_EQ(clock_text(3 * 86400 + 4 * 3600), "3d 04:00:00");
  EXPECT_EQ(clock_text(-1), "0:00");
  EXPECT_EQ(clock_text(1e300), clock_text(3.0e9));
}

}  // namespace
}  // namespace limbeck::cli
