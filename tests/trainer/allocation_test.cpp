// The choice of formats within a budget against all choices there are, and what a budget means.
#include "trainer/quantize/allocation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <tuple>

#include "tests/trainer/message_of.h"
#include "trainer/quantize/budget.h"

namespace limbeck::quantize {
namespace {

// Every combination, in order, by the definition.
std::optional<Allocation> by_brute_force(const Choices& items, int64_t budget) {
  std::optional<Allocation> best;
  std::vector<size_t> chosen(items.size(), 0);
  for (;;) {
    int64_t bytes = 0;
    double loss = 0;
    for (size_t i = 0; i < items.size(); ++i) bytes += items[i][chosen[i]].bytes, loss += items[i][chosen[i]].loss;
    if (bytes <= budget && (!best || std::tie(loss, bytes) < std::tie(best->loss, best->bytes)))
      best = Allocation{chosen, bytes, loss};
    size_t item = items.size();
    while (item > 0 && ++chosen[item - 1] == items[item - 1].size()) chosen[--item] = 0;
    if (item == 0) return best;
  }
}

enum class Losses { kFalling, kAny, kFewValues };

// Few values: eighths, so that sums are exact and ties many, zeros among them.
Choices random_items(std::mt19937_64& random, size_t count, size_t formats, Losses kind) {
  std::uniform_int_distribution<int64_t> bytes(0, kind == Losses::kFewValues ? 6 : 4000), eighths(0, 5);
  std::uniform_real_distribution<double> loss(0, 1);
  Choices items(count);
  for (auto& choices : items) {
    for (size_t i = 0; i < formats; ++i) {
      choices.push_back(
          {bytes(random), kind == Losses::kFewValues ? static_cast<double>(eighths(random)) / 8 : loss(random)});
    }
    if (kind != Losses::kFalling) continue;
    std::vector<double> losses;
    for (const Choice& choice : choices) losses.push_back(choice.loss);
    std::sort(losses.rbegin(), losses.rend());
    std::sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) { return a.bytes < b.bytes; });
    for (size_t i = 0; i < formats; ++i) choices[i].loss = losses[i];
  }
  return items;
}

int64_t most_bytes(const Choices& items) {
  int64_t bytes = 0;
  for (const auto& choices : items) {
    bytes += std::max_element(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
               return a.bytes < b.bytes;
             })->bytes;
  }
  return bytes;
}

TEST(Allocation, IsTheOneThatTryingAllOfThemFinds) {
  std::mt19937_64 random(16);
  int64_t feasible = 0, ties = 0;
  for (int round = 0; round < 1500; ++round) {
    const size_t count = 1 + random() % 7, formats = 1 + random() % 4;
    const auto kind = static_cast<Losses>(round % 3);
    const Choices items = random_items(random, count, formats, kind);
    const int64_t budget = std::uniform_int_distribution<int64_t>(0, most_bytes(items) + 1)(random);
    const auto wanted = by_brute_force(items, budget), found = allocate(items, budget);
    ASSERT_EQ(found.has_value(), wanted.has_value()) << round;
    ASSERT_EQ(found.has_value(), budget >= least_bytes(items)) << round;
    if (!found) continue;
    ++feasible;
    ASSERT_EQ(found->loss, wanted->loss) << round;
    ASSERT_EQ(found->bytes, wanted->bytes) << round;
    ASSERT_LE(found->bytes, budget) << round;
    ASSERT_EQ(found->chosen, wanted->chosen) << round;
    ties += kind == Losses::kFewValues;
  }
  EXPECT_GT(feasible, 700);
  EXPECT_GT(ties, 200);
}

TEST(Allocation, IsThatOfTwelveItemsInFourFormats) {
  std::mt19937_64 random(12);
  for (const Losses kind : {Losses::kFalling, Losses::kFewValues}) {
    const Choices items = random_items(random, 12, 4, kind);
    const int64_t budget = (least_bytes(items) + most_bytes(items)) / 2;
    const auto wanted = by_brute_force(items, budget), found = allocate(items, budget);
    ASSERT_TRUE(found && wanted);
    EXPECT_EQ(found->loss, wanted->loss);
    EXPECT_EQ(found->bytes, wanted->bytes);
    EXPECT_EQ(found->chosen, wanted->chosen);
  }
}

TEST(Allocation, NeverLosesMoreWithAByteMore) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 20; ++round) {
    const Choices items = random_items(random, 8, 4, round % 2 == 0 ? Losses::kFewValues : Losses::kAny);
    double before = std::numeric_limits<double>::infinity();
    const int64_t most = most_bytes(items), stride = std::max<int64_t>(1, most / 500);
    EXPECT_FALSE(allocate(items, least_bytes(items) - 1));
    for (int64_t budget = least_bytes(items); budget <= most; budget += stride) {
      const auto found = allocate(items, budget);
      ASSERT_TRUE(found);
      ASSERT_LE(found->bytes, budget);
      ASSERT_LE(found->loss, before) << budget;
      before = found->loss;
    }
  }
}

TEST(Allocation, OfAModelOfFourHundredItemsTakesLessThanASecond) {
  std::mt19937_64 random(400);
  const Choices items = random_items(random, 400, 5, Losses::kFalling);
  const auto begin = std::chrono::steady_clock::now();
  const auto found = allocate(items, (least_bytes(items) + most_bytes(items)) / 3);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  ASSERT_TRUE(found);
  RecordProperty("seconds", std::to_string(took.count()));
  EXPECT_LT(took.count(), 1.0);
}

TEST(Budget, IsBytesOfWeightsInEveryUnit) {
  EXPECT_EQ(Budget::parse("4.5 bits", "--budget").allowed(1000), 562);
  EXPECT_EQ(Budget::parse("6x", "--budget").allowed(1000), 666);
  EXPECT_EQ(Budget::parse("123456 bytes", "--budget").allowed(1000), 123456);
  EXPECT_EQ(Budget::parse("3.25 ms", "--budget").allowed(1000), 3250000);
  for (const char* text : {"", "6", "x", "-1x", "0 bits", "nan bits", "1.5 bytes", "4.5 bits more", "1e99x"}) {
    const std::string said = test::message_of([&] { Budget::parse(text, "--budget"); });
    EXPECT_TRUE(said.starts_with("2: --budget = \"" + std::string(text) + "\": wanted what the model may weigh"))
        << said;
  }
}

TEST(Budget, SeveralAreBitsAWeightWhereNothingElseIsSaid) {
  std::vector<std::string> texts;
  std::vector<int64_t> bytes;
  for (const Budget& budget : parse_budgets("3,4.5,6x,700 bytes", "--budgets")) {
    texts.push_back(budget.text());
    bytes.push_back(budget.allowed(1000));
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"3 bits", "4.5 bits", "6x", "700 bytes"}));
  EXPECT_EQ(bytes, (std::vector<int64_t>{375, 562, 666, 700}));
  const auto said = [](const std::string& text) { return test::message_of([&] { parse_budgets(text, "--budgets"); }); };
  EXPECT_EQ(said(""), "2: --budgets names no budget: wanted such as 3,4,5,6 or 4x,6x");
  EXPECT_EQ(said("3,6x,3 bits"), "2: --budgets = \"3,6x,3 bits\": names 3 bits twice: name it once");
  for (const char* text : {"3,,4", "3,4 lots", "3;4"})
    EXPECT_NE(said(text).find("wanted what the model may weigh"), std::string::npos) << text;
}

TEST(Budget, WhatIsOfferedHoldsTheBytes) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 2000; ++round) {
    const auto values = static_cast<int64_t>(1000 + random() % 1000000);
    const int64_t bytes = values / 2 + static_cast<int64_t>(random() % static_cast<uint64_t>(values));
    for (const char* unit : {"1 bits", "1x", "1 bytes", "1 ms"}) {
      const std::string offered = Budget::parse(unit, "").holding(bytes, values);
      EXPECT_GE(Budget::parse(offered, "").allowed(values), bytes) << offered;
    }
  }
}

}  // namespace
}  // namespace limbeck::quantize
