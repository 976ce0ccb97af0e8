// The fuzz corpus as ordinary tests: every file is accepted or refused as the prefix of its name says.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/fuzz/untrusted_input.h"

namespace {

namespace fs = std::filesystem;

void replay(const std::string& folder, bool limbeck::fuzz::Verdict::*accepted, size_t at_least) {
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(LIMBECK_SOURCE_DIR) / "tests/fuzz/corpus" / folder)) {
    std::ifstream stream(entry.path(), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
    const std::string name = entry.path().filename().string();
    ASSERT_TRUE(name.rfind("ok_", 0) == 0 || name.rfind("bad_", 0) == 0) << name;
    const auto verdict = limbeck::fuzz::judge(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    EXPECT_EQ(verdict.*accepted, name.rfind("ok_", 0) == 0) << folder << "/" << name;
    ++files;
  }
  EXPECT_GE(files, at_least);
}

TEST(FuzzCorpus, SafetensorsFilesAreJudgedAsNamed) { replay("safetensors", &limbeck::fuzz::Verdict::safetensors, 70); }
TEST(FuzzCorpus, JsonFilesAreJudgedAsNamed) { replay("json", &limbeck::fuzz::Verdict::json, 14); }
TEST(FuzzCorpus, IndexFilesAreJudgedAsNamed) { replay("index", &limbeck::fuzz::Verdict::index, 20); }

}  // namespace
