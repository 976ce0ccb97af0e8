// `check` rehearses generation as `generate` does it: by the settings of the recipe, on the device it is for.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/recipe_settings.h"
#include "tests/support/tiny_models.h"
#include "trainer/check/dry_run.h"

namespace limbeck::check {
namespace {

using test::RecipeKeys;

CheckReport checked(const RecipeKeys& more, const std::string& rows = "2", const std::string& length = "12") {
  const std::string model = test::tiny_model("llama").string();
  RecipeKeys keys{{"student.model", model},
                  {"teacher.model", model},
                  {"data.batch_size", rows},
                  {"data.sequence_length", length},
                  {"generation.max_new_tokens", "4"}};
  keys.insert(keys.end(), more.begin(), more.end());
  return dry_run(test::recipe_settings(keys), test::builtin_registries());
}

int64_t generation_peak(const CheckReport& report) {
  const auto row = std::find_if(report.memory.begin(), report.memory.end(),
                                [](const MemoryRow& one) { return one.what == "peak of generation with its cache"; });
  return row == report.memory.end() ? -1 : row->bytes;
}

int64_t sampling_casts(const CheckReport& report) {
  return std::count_if(report.casts.begin(), report.casts.end(), [](const CastRow& cast) {
    return cast.place == "generate (sampling)" && cast.from == "float32" && cast.to == "float64" &&
           cast.phase == "generate";
  });
}

TEST(CheckGeneration, SamplesWhereTheRecipeDoes) {
  const CheckReport greedy = checked({}),
                    sampled = checked(
                        {{"generation.temperature", "0.8"}, {"generation.top_k", "20"}, {"generation.top_p", "0.9"}});
  EXPECT_TRUE(greedy.passed());
  EXPECT_TRUE(sampled.passed());
  EXPECT_EQ(sampling_casts(greedy), 0);
  EXPECT_EQ(sampling_casts(sampled), 1);
}

TEST(CheckGeneration, RefusesWhatTheSamplingOfTheDeviceHasNoRoomFor) {
  EXPECT_TRUE(checked({}, "65536", "1").passed());
  const CheckReport report = checked({{"device", "cuda"}}, "65536", "1");
  ASSERT_EQ(report.ran_wrongly.size(), 1u);
  EXPECT_NE(report.ran_wrongly[0].find("wanted at most 65535 rows of 4194303 on CUDA"), std::string::npos)
      << report.ran_wrongly[0];
}

TEST(CheckGeneration, ChangesNothingOfTheOtherPeaks) {
  const CheckReport greedy = checked({{"device", "cuda"}}),
                    sampled = checked({{"device", "cuda"}, {"generation.temperature", "1"}});
  EXPECT_EQ(greedy.peak_bytes, sampled.peak_bytes);
  EXPECT_GT(generation_peak(greedy), 0);
  EXPECT_EQ(generation_peak(greedy), generation_peak(sampled));  // the same kernels, with the same workspace
}

TEST(CheckMemory, APlanBeyondTheLimitIsRefused) {
  const CheckReport free = checked({});
  const auto gib = [](int64_t bytes) { return std::to_string(static_cast<double>(bytes) / (1 << 30)); };
  EXPECT_TRUE(checked({{"parallel.memory_limit", gib(2 * free.peak_bytes)}}).passed());
  const CheckReport refused = checked({{"parallel.memory_limit", gib(free.peak_bytes / 2)}});
  ASSERT_EQ(refused.ran_wrongly.size(), 1u);
  for (const std::string& part : {"[memory] one rank needs " + std::to_string(free.peak_bytes) + " bytes",
                                  std::string("a batch of 2 x 12 tokens"), std::string("parallel.memory_limit = 0.0"),
                                  std::string("data.batch_size"), std::string("train.checkpoint_activations=true")}) {
    EXPECT_NE(refused.ran_wrongly[0].find(part), std::string::npos) << refused.ran_wrongly[0];
  }
}

}  // namespace
}  // namespace limbeck::check
