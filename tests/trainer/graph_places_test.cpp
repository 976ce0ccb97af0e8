#include "trainer/session/graph_places.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace limbeck::test {
namespace {

using session::GraphPlaces;

// As StepGraphs: a kind is recorded when it comes the second time in a row of having its place.
struct Recording {
  GraphPlaces places;
  int64_t recorded = 0;

  bool comes(const std::string& kind) {
    const auto found = places.find(kind);
    if (!found) return false;
    if (!found->is_new && !graphs[found->place])
      ++recorded, graphs[found->place] = true, places.hold_graph(found->place);
    if (found->is_new) graphs[found->place] = false;
    return true;
  }

 private:
  std::vector<bool> graphs = std::vector<bool>(GraphPlaces::kMost);
};

TEST(GraphPlaces, AreKeptByKindsThatTakeTurns) {
  Recording all;
  for (int round = 0; round < 50; ++round) {
    for (const char* kind : {"a", "b", "c", "d"}) EXPECT_TRUE(all.comes(kind)) << kind;
  }
  EXPECT_EQ(all.recorded, 4);
  EXPECT_EQ(all.places.without_place(), 0);
}

// A fifth that takes turns with four would be recorded in place of one, and that in place of the next, for ever.
TEST(GraphPlaces, AreNotTakenFromKindsThatStillCome) {
  Recording all;
  for (const char* kind : {"a", "b", "c", "d", "a", "b", "c", "d"}) all.comes(kind);
  for (int round = 0; round < 200; ++round) {
    for (const char* kind : {"a", "b", "c", "d"}) EXPECT_TRUE(all.comes(kind)) << kind;
    EXPECT_FALSE(all.comes("e"));
  }
  EXPECT_EQ(all.recorded, 4);
  EXPECT_EQ(all.places.without_place(), 200);
}

TEST(GraphPlaces, WithoutAGraphAreLeftToTheNextKind) {
  Recording all;
  for (int scale = 0; scale < 100; ++scale) EXPECT_TRUE(all.comes(std::to_string(scale)));
  EXPECT_EQ(all.recorded, 0);
  for (int step = 0; step < 3; ++step) EXPECT_TRUE(all.comes("at last"));
  EXPECT_EQ(all.recorded, 1);
}

TEST(GraphPlaces, OfAKindThatHasNotComeForLongAreTaken) {
  Recording all;
  for (const char* kind : {"a", "b", "c", "d", "a", "b", "c", "d"}) all.comes(kind);
  for (int64_t i = 1; i < GraphPlaces::kLong - 3; ++i) EXPECT_FALSE(all.comes("e")) << i;  // "a" came 3 before "d"
  EXPECT_TRUE(all.comes("e"));
  EXPECT_TRUE(all.comes("e"));
  EXPECT_EQ(all.recorded, 5);
  EXPECT_TRUE(all.comes("d"));  // and not from one that came later
  EXPECT_EQ(all.recorded, 5);
}

// Whatever comes, and however long: a place is recorded anew only after it was out of use for long.
TEST(GraphPlaces, OfManyWidthsAtRandomAreRecordedAFewTimes) {
  Recording all;
  uint64_t state = 1;
  constexpr int64_t kBatches = 20000;
  for (int64_t i = 0; i < kBatches; ++i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    all.comes(std::to_string((state >> 33) % 1000));
  }
  EXPECT_GT(all.recorded, 4);
  EXPECT_LE(all.recorded, static_cast<int64_t>(GraphPlaces::kMost) * (1 + kBatches / GraphPlaces::kLong));
}

}  // namespace
}  // namespace limbeck::test
