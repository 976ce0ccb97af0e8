#include "modules/nearest_name.h"

#include <gtest/gtest.h>

#include "modules/id_range.h"

namespace limbeck {
namespace {

using Names = std::vector<std::string>;

TEST(NearestNames, AreOrderedByDistanceThenName) {
  const Names known{"temperature", "learning_rate", "learn_rate", "dtype", "learning_rates"};
  EXPECT_EQ(nearest_names("learning_rat", known, 2), (Names{"learning_rate", "learning_rates"}));
  EXPECT_EQ(nearest_names("abd", {"abf", "abc", "abe"}, 2), (Names{"abc", "abe"}));
}

TEST(NearestNames, CountsASwapOfNeighboursAsOne) {
  EXPECT_EQ(nearest_names("dytpe", {"dxxpe", "dtype", "style"}, 1), Names{"dtype"});
  EXPECT_EQ(nearest_names("ba", {"ab", "xb"}, 1), Names{"ab"});
}

TEST(NearestNames, LeavesOutTheImplausible) {
  EXPECT_EQ(nearest_names("dtype", {"completely_different", "zzzzz"}, 3), Names{});
  EXPECT_EQ(nearest_names("int3", {"auto"}, 3), Names{});
  EXPECT_EQ(nearest_names("mse", {"ce", "kd"}, 3), Names{});
  EXPECT_EQ(nearest_names("dtype", {}, 3), Names{});
  EXPECT_EQ(nearest_names("dtype", {"dtype"}, 0), Names{});
}

TEST(NearestNames, FindsTheExactAmongAHundredThousand) {
  Names known;
  for (int i = 0; i < 100'000; ++i) known.push_back("model.layers." + std::to_string(i) + ".self_attn.q_proj.weight");
  EXPECT_EQ(nearest_names("model.layers.99999.self_attn.q_porj.weight", known, 1)[0],
            "model.layers.99999.self_attn.q_proj.weight");
}

TEST(NearestNames, AreOfferedOnlyWhereThereAreAny) {
  const Offer offer{.before = "; did you mean ", .behind = "?", .otherwise = "; see --help"};
  EXPECT_EQ(offer_nearest("dytpe", {"dtype", "type"}, 2, offer), "; did you mean dtype, type?");
  EXPECT_EQ(offer_nearest("dtype", {"zzzzzzzzz"}, 2, offer), "; see --help");
  EXPECT_EQ(offer_nearest("dtype", {}, 2, {.before = " (nearest: ", .behind = ")"}), "");
}

TEST(IdRange, NeverEndsBelowItsBegin) {
  EXPECT_EQ(ids_below(32000), "0 to 31999");
  EXPECT_EQ(ids_below(1), "0");
  EXPECT_EQ(ids_below(0), "none");
}

}  // namespace
}  // namespace limbeck
