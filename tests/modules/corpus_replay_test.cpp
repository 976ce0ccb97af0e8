// The fuzz corpus as ordinary tests: every file is accepted or refused as the prefix of its name says.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/fuzz/template_input.h"
#include "tests/fuzz/untrusted_input.h"

namespace {

namespace fs = std::filesystem;

template <typename Accepts>
void replay(const std::string& folder, Accepts accepts, size_t at_least) {
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(LIMBECK_SOURCE_DIR) / "tests/fuzz/corpus" / folder)) {
    std::ifstream stream(entry.path(), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
    const std::string name = entry.path().filename().string();
    ASSERT_TRUE(name.rfind("ok_", 0) == 0 || name.rfind("bad_", 0) == 0) << name;
    const bool accepted = accepts(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
    EXPECT_EQ(accepted, name.rfind("ok_", 0) == 0) << folder << "/" << name;
    ++files;
  }
  EXPECT_GE(files, at_least);
}

auto judged(bool limbeck::fuzz::Verdict::*as) {
  return [as](const uint8_t* data, size_t size) { return limbeck::fuzz::judge(data, size).*as; };
}

TEST(FuzzCorpus, SafetensorsFilesAreJudgedAsNamed) {
  replay("safetensors", judged(&limbeck::fuzz::Verdict::safetensors), 70);
}
TEST(FuzzCorpus, JsonFilesAreJudgedAsNamed) { replay("json", judged(&limbeck::fuzz::Verdict::json), 14); }
TEST(FuzzCorpus, IndexFilesAreJudgedAsNamed) { replay("index", judged(&limbeck::fuzz::Verdict::index), 20); }
TEST(FuzzCorpus, TemplatesAreJudgedAsNamed) { replay("templates", limbeck::fuzz::judge_template, 35); }

}  // namespace
