// Each second belongs to one phase: the innermost.
#include "trainer/metrics/phase_clock.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <thread>

namespace limbeck::metrics {
namespace {

void wait(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

TEST(PhaseClock, GivesTheTimeOfAnInnerPhaseToItAlone) {
  const auto begin = std::chrono::steady_clock::now();
  PhaseClock clock;
  {
    const InPhase loss("loss");
    wait(20);
    {
      const InPhase teacher("teacher");
      wait(30);
    }
    wait(20);
  }
  wait(10);  // of no phase
  {
    const InPhase again("loss");
    wait(10);
  }
  const double all = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ASSERT_EQ(clock.seconds().size(), 2u);
  EXPECT_EQ(clock.seconds()[0].first, "loss") << "in the order of their first beginning";
  const double loss = clock.seconds()[0].second, teacher = clock.seconds()[1].second;
  EXPECT_GE(loss, 0.050);
  EXPECT_GE(teacher, 0.030);
  EXPECT_LE(loss + teacher, all - 0.010) << "time was counted twice, or outside of a phase";
}

TEST(PhaseClock, LeavesAPhaseThatAnExceptionEnds) {
  PhaseClock clock;
  try {
    const InPhase outer("data");
    const InPhase inner("update");
    throw 1;
  } catch (int) {
  }
  const double before = clock.seconds()[0].second + clock.seconds()[1].second;
  wait(50);
  { const InPhase next("data"); }
  EXPECT_LT(clock.seconds()[0].second + clock.seconds()[1].second - before, 0.040) << "the wait was nobody's";
}

TEST(PhaseClock, IsOfItsThreadAndNeedsNone) {
  const InPhase nobody("loss");
  PhaseClock clock;
  std::thread([] { const InPhase elsewhere("data"); }).join();
  EXPECT_TRUE(clock.seconds().empty());
}

}  // namespace
}  // namespace limbeck::metrics
