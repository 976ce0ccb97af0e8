#include "modules/adapters/peft/peft_config.h"

#include <gtest/gtest.h>

#include "modules/errors.h"
#include "tests/modules/weights_files.h"

namespace limbeck::adapters {
namespace {

TEST(PeftConfig, PatternsNameModulesAsPeftDoes) {
  const std::string module = "model.layers.10.self_attn.q_proj";
  for (const char* pattern : {"q_proj", "self_attn.q_proj", "model.layers.10.self_attn.q_proj", "layers\\.10\\..*",
                              ".*10.*q_proj", "[qk]_proj", "q_proj|v_proj", "layers.1\\d.self_attn.q_proj"}) {
    EXPECT_TRUE(ModulePattern(pattern).names(module)) << pattern;
  }
  for (const char* pattern : {"proj", "_proj", "q_pro", "0.self_attn.q_proj", "k_proj", "layers\\.1\\..*", "^q_proj"}) {
    EXPECT_FALSE(ModulePattern(pattern).names(module)) << pattern;
  }
  EXPECT_TRUE(ModulePattern("lm_head").names("lm_head"));
}

TEST(PeftConfig, AFaultyPatternNamesNothingAndSaysWhy) {
  for (const char* pattern :
       {"(?!q)_proj", "(q)\\1", "(?P<x>q)(?P=x)", "q(", "q++", "q{,3}", "[[:alpha:]]", "\\Qq\\E"}) {
    const ModulePattern wrong(pattern);
    EXPECT_NE(wrong.fault(), "") << pattern;
    EXPECT_FALSE(wrong.names("q")) << pattern;
  }
  EXPECT_NE(ModulePattern("(?!q)_proj").fault().find("lookahead and backreferences are not supported"),
            std::string::npos);
  EXPECT_EQ(ModulePattern("(.|.)*Z").fault(), "");
  EXPECT_FALSE(ModulePattern("(.|.)*Z").names(std::string(100'000, 'a')));
}

TEST(PeftConfig, ScalesByAlphaAndRankOfTheModule) {
  const test::TemporaryFolder folder;
  const auto read = [&](const std::string& more) {
    test::write_bytes(folder / "c.json", R"({"peft_type": "LORA", "r": 4, "lora_alpha": 12)" + more + "}");
    return read_peft_config(folder / "c.json");
  };
  EXPECT_EQ(read("").scale_of("a.q_proj"), 3);
  EXPECT_EQ(read("").dropout, 0);
  EXPECT_EQ(read(R"(, "lora_dropout": 0.05)").dropout, 0.05);
  EXPECT_THROW(read(R"(, "lora_dropout": 1.0)"), WeightsError);
  EXPECT_THROW(read(R"(, "lora_dropout": -0.1)"), WeightsError);
  EXPECT_EQ(read(R"(, "use_rslora": true)").scale_of("a.q_proj"), 6);
  const PeftConfig patterns = read(R"(, "rank_pattern": {"q_proj": 16}, "alpha_pattern": {"a.v_proj": 2})");
  EXPECT_EQ(patterns.rank_of("a.q_proj"), 16);
  EXPECT_EQ(patterns.scale_of("a.q_proj"), 0.75);
  EXPECT_EQ(patterns.scale_of("a.v_proj"), 0.5);
  EXPECT_EQ(patterns.scale_of("b.v_proj"), 3);
}

}  // namespace
}  // namespace limbeck::adapters
