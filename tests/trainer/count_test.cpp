#include "trainer/recipe/count.h"

#include <gtest/gtest.h>

namespace limbeck::recipe {
namespace {

const std::vector<CountUnit> kAny = {CountUnit::kSteps, CountUnit::kTokens, CountUnit::kSamples, CountUnit::kEpochs};

TEST(Count, ReadsAmountsWithUnits) {
  const std::pair<const char*, Count> cases[] = {{"500 steps", {500, CountUnit::kSteps}},
                                                 {"1 step", {1, CountUnit::kSteps}},
                                                 {"2M tokens", {2'000'000, CountUnit::kTokens}},
                                                 {"1.5M tokens", {1'500'000, CountUnit::kTokens}},
                                                 {"1 epoch", {1, CountUnit::kEpochs}},
                                                 {"50k samples", {50'000, CountUnit::kSamples}},
                                                 {"3epochs", {3, CountUnit::kEpochs}},
                                                 {"10k steps", {10'000, CountUnit::kSteps}},
                                                 {"1.25B tokens", {1'250'000'000, CountUnit::kTokens}},
                                                 {"0 steps", {0, CountUnit::kSteps}},
                                                 {"2.50k tokens", {2'500, CountUnit::kTokens}}};
  for (const auto& [text, count] : cases) {
    const auto parsed = parse_count(text, kAny);
    EXPECT_EQ(parsed.fault, "") << text;
    EXPECT_EQ(parsed.count, count) << text;
  }
}

TEST(Count, PrintsBackWhatReadsAsTheSame) {
  for (const int64_t amount :
       {0L, 1L, 7L, 999L, 1'000L, 1'500L, 2'000'000L, 3'000'000'000L, 9'223'372'036'854'775'807L}) {
    for (const CountUnit unit : kAny) {
      const Count count{amount, unit};
      const auto again = parse_count(count.to_string(), kAny);
      EXPECT_EQ(again.fault, "") << count.to_string();
      EXPECT_EQ(again.count, count) << count.to_string();
    }
  }
  EXPECT_EQ((Count{2'000'000, CountUnit::kTokens}).to_string(), "2M tokens");
  EXPECT_EQ((Count{1, CountUnit::kEpochs}).to_string(), "1 epoch");
  EXPECT_EQ((Count{1'500, CountUnit::kSteps}).to_string(), "1500 steps");
}

TEST(Count, ReadsSharesWhereTheyAreAccepted) {
  const std::vector<CountUnit> units = {CountUnit::kSteps, CountUnit::kPercent};
  for (const auto& [text, millionths] : {std::pair<const char*, int64_t>{"3 %", 30'000},
                                         {"3%", 30'000},
                                         {"0.03", 30'000},
                                         {"0.5 %", 5'000},
                                         {"0.0", 0},
                                         {"1.0", 1'000'000},
                                         {"100 %", 1'000'000},
                                         {"33.3333 %", 333'333}}) {
    const auto parsed = parse_count(text, units);
    EXPECT_EQ(parsed.fault, "") << text;
    EXPECT_EQ(parsed.count, (Count{millionths, CountUnit::kPercent})) << text;
    EXPECT_EQ(parse_count(parsed.count.to_string(), units).count, parsed.count) << parsed.count.to_string();
  }
  const std::string wanted = "wanted a share of at most 1 or 100 %, to a millionth";
  for (const char* text : {"101 %", "1.5", "0.00000001"}) EXPECT_EQ(parse_count(text, units).fault, wanted) << text;
  EXPECT_EQ(parse_count("3", units).fault, "the unit is missing: write 3 steps or 3 %");
  EXPECT_EQ(parse_count("0.03", {CountUnit::kSteps}).fault, "the unit is missing: write 0.03 steps");
}

TEST(Count, SaysWhatIsWrongAndWhatToWrite) {
  const std::string wanted = "wanted a count with its unit, such as 500 steps, 2M tokens, 50k samples or 1 epoch";
  EXPECT_EQ(parse_count("500", kAny).fault,
            "the unit is missing: write 500 steps, 500 tokens, 500 samples or 500 epochs");
  EXPECT_EQ(parse_count("500 stpes", kAny).fault, "unit \"stpes\" is unknown: did you mean steps? " + wanted);
  EXPECT_EQ(parse_count("500 kilometres", kAny).fault, "unit \"kilometres\" is unknown: " + wanted);
  EXPECT_EQ(parse_count("many steps", kAny).fault, wanted);
  EXPECT_EQ(parse_count("-5 steps", kAny).fault, wanted);
  EXPECT_EQ(parse_count("", kAny).fault, wanted);
  EXPECT_EQ(parse_count("1.2.3 steps", kAny).fault, wanted);
  EXPECT_EQ(parse_count("1.5 steps", kAny).fault, "wanted a whole number of steps up to 9223372036854775807");
  EXPECT_EQ(parse_count("99999999999G tokens", kAny).fault,
            "wanted a whole number of tokens up to 9223372036854775807");
  EXPECT_EQ(parse_count("2M tokens", {CountUnit::kSteps}).fault, "counted in tokens here, wanted steps");
}

}  // namespace
}  // namespace limbeck::recipe
