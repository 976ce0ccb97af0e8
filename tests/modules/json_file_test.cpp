// config.json as untrusted data, and the typed getters' ranges and messages.
#include "modules/io/json_file.h"

#include <limits>

#include "tests/modules/weights_files.h"

namespace limbeck::io {
namespace {

using namespace limbeck::test;

class BadJson : public testing::Test {
 protected:
  void refused(const std::string& bytes, const std::vector<std::string>& parts) {
    write_bytes(path_, bytes);
    expect_refusal<WeightsError>([&] { JsonFile file(path_); }, ExitCode::kWeights, parts);
  }
  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "config.json";
};

TEST_F(BadJson, IsRefusedWithFileAndByte) {
  const std::string where = path_.string();
  refused("", {where, "not JSON at byte"});
  refused("{\"a\": 1", {where, "not JSON at byte"});
  refused("{\"a\": NaN}", {where, "NaN and Infinity are not JSON"});
  refused("{\"a\": -Infinity}", {where, "NaN and Infinity are not JSON"});
  refused("{\"a\": 1e999}", {where, "not JSON at byte"});
  refused("{\"a\": \"\xff\"}", {where, "UTF-8"});
  refused("{\"a\": 1, \"a\": 2}", {where, "key \"a\" appears twice"});
  refused("{\"x\": {\"b\": [{\"a\": 1, \"a\": 2}]}}", {where, "key \"a\" appears twice"});
  refused(std::string(65, '[') + std::string(65, ']'), {where, "nested deeper than 64"});
  refused("{\"a\":" + std::string(1'000'000, '['), {where, "nested deeper than 64"});
  refused(std::string("{\"a\": 1}\0{", 10), {where, "zero byte"});
  refused("{\"a\": 1} // why", {where, "not JSON at byte"});
  refused("[1, 2]", {where, "holds array, wanted an object"});
}

TEST_F(BadJson, TooLargeIsRefusedUnread) {
  write_bytes(path_, "{");
  std::filesystem::resize_file(path_, uint64_t{64} << 30);
  expect_refusal<WeightsError>([&] { JsonFile file(path_); }, ExitCode::kWeights,
                               {"68719476736 bytes of JSON, at most 16777216"});
  refused("{\"a\": [" + std::string(7'000'000, ' ') + "0" +
              [] {
                std::string zeros;
                for (int i = 0; i < 2'000'001; ++i) zeros += ",0";
                return zeros;
              }() +
              "]}",
          {"more than 2000000 values"});
}

TEST_F(BadJson, LinksAndFoldersAreRefused) {
  std::filesystem::create_symlink("/etc/passwd", path_);
  expect_refusal<WeightsError>([&] { JsonFile file(path_); }, ExitCode::kWeights, {"is a symbolic link"});
  expect_refusal<WeightsError>([&] { JsonFile file(folder_.path()); }, ExitCode::kWeights, {"is a folder"});
  expect_refusal<WeightsError>([&] { JsonFile file(folder_ / "absent.json"); }, ExitCode::kWeights, {"no such file"});
}

JsonFile sample() {
  const TemporaryFolder folder;
  write_bytes(folder / "c.json", R"({"x": 3.5, "n": 42, "minus": -7, "big": 18446744073709551615, "null": null,
    "text": "hi", "yes": true, "list": [1], "rope_scaling": {"factor": 8, "type": "yarn"}, "theta": 1e6})");
  return JsonFile(JsonFile(folder / "c.json").value(), "FILE");
}

TEST(JsonFile, IntegersAreExactAndRanged) {
  const JsonFile file = sample();
  EXPECT_EQ(file.integer("n", 42, 42), 42);
  EXPECT_EQ(file.integer("minus", -7, 0), -7);
  EXPECT_EQ(file.integer_or("absent", 5, 0, 5), 5);
  EXPECT_EQ(file.integer_or("null", 5, 0, 5), 5);
  const auto refused = [&](const std::string& key, int64_t low, int64_t high, const std::string& message) {
    expect_refusal<WeightsError>([&] { file.integer(key, low, high); }, ExitCode::kWeights, {message});
  };
  refused("x", 1, 1048576, "FILE: key \"x\" = 3.5, wanted an integer in [1, 1048576]");
  refused("n", 43, 100, "FILE: key \"n\" = 42, wanted an integer in [43, 100]");
  refused("n", 0, 41, "FILE: key \"n\" = 42, wanted an integer in [0, 41]");
  refused("minus", 0, 10, "FILE: key \"minus\" = -7");
  refused("big", 0, std::numeric_limits<int64_t>::max(), "FILE: key \"big\" = 18446744073709551615");
  refused("theta", 0, 10'000'000, "FILE: key \"theta\" = 1000000.0, wanted an integer");
  refused("text", 0, 1, "FILE: key \"text\" = \"hi\", wanted an integer");
  refused("list", 0, 1, "FILE: key \"list\" = an array");
  refused("absent", 0, 1, "FILE: key \"absent\" is missing, wanted an integer in [0, 1]");
}

TEST(JsonFile, DefaultsPassTheSameChecks) {
  const JsonFile file = sample();
  expect_refusal<WeightsError>(
      [&] { file.integer_or("absent", 8, 1, 4); }, ExitCode::kWeights,
      {"FILE: key \"absent\" is missing and would be 8, wanted an integer in [1, 4]: give it"});
  expect_refusal<WeightsError>([&] { file.number_or("null", 1.5, 0, 1); }, ExitCode::kWeights,
                               {"FILE: key \"null\" is missing and would be 1.5, wanted a number in [0.0, 1.0]"});
}

TEST(JsonFile, OtherTypesAreCheckedToo) {
  const JsonFile file = sample();
  EXPECT_EQ(file.number("x", 0, 4), 3.5);
  EXPECT_EQ(file.number("n", 0, 100), 42);
  EXPECT_EQ(file.number_or("null", 1.5, 0, 2), 1.5);
  EXPECT_TRUE(file.boolean_or("yes", false));
  EXPECT_TRUE(file.boolean_or("absent", true));
  EXPECT_EQ(file.string("text"), "hi");
  EXPECT_EQ(file.string_or("absent", "no"), "no");
  EXPECT_FALSE(file.has("null"));
  EXPECT_FALSE(file.has("absent"));
  EXPECT_EQ(file.child("rope_scaling").integer("factor", 1, 64), 8);
  const auto refused = [](auto action, const std::string& message) {
    expect_refusal<WeightsError>(action, ExitCode::kWeights, {message});
  };
  refused([&] { file.number("x", 0, 1); }, "FILE: key \"x\" = 3.5, wanted a number in [0.0, 1.0]");
  refused([&] { file.number("yes", 0, 1); }, "FILE: key \"yes\" = true, wanted a number");
  refused([&] { file.boolean_or("n", false); }, "FILE: key \"n\" = 42, wanted true or false");
  refused([&] { file.string("n"); }, "FILE: key \"n\" = 42, wanted a string");
  refused([&] { file.string_or("n", ""); }, "wanted a string");
  refused([&] { file.child("n"); }, "FILE: key \"n\" = 42, wanted an object");
  refused([&] { file.child("rope_scaling").integer("type", 0, 1); }, "FILE: \"rope_scaling\": key \"type\" = \"yarn\"");
}

}  // namespace
}  // namespace limbeck::io
