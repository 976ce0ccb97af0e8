// One row for every way a single weights file can be wrong: exit code 4 and a message that names file, tensor and
// fault.
#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <limits>

#include "modules/io/finite_check.h"
#include "modules/io/safetensors.h"
#include "tests/modules/weights_files.h"

namespace limbeck::io {
namespace {

using namespace limbeck::test;
namespace fs = std::filesystem;

struct BadFile {
  std::string name;  // of the case
  std::string bytes;
  std::vector<std::string> message;
};

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape + "],\"data_offsets\":[" + offsets + "]}";
}

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets, size_t payload) {
  return weights_file("{" + tensor("w", dtype, shape, offsets) + "}", payload);
}

std::vector<BadFile> bad_files() {
  const std::string good = "{" + tensor("w", "F32", "2", "0,8") + "}";
  const std::string twice = "{" + tensor("w", "F32", "2", "0,8") + "," + tensor("w", "F32", "2", "8,16") + "}";
  return {
      {"ZeroLength", "", {"has 0 bytes", "at least 8"}},
      {"SevenBytes", std::string(7, 'x'), {"has 7 bytes"}},
      {"HeaderOfNothing", std::string(8, '\0'), {"header of 0 bytes"}},
      {"HeaderLengthBeyondFile", length_prefix(1000) + good, {"header of 1000 bytes in a file of", "cut short"}},
      {"HeaderLengthPlus8Wraps",
       length_prefix(~uint64_t{0} - 7) + good,
       {"18446744073709551608 bytes", "at most 16777216"}},
      {"HeaderOverCap", length_prefix((16u << 20) + 1) + good, {"16777217 bytes, at most 16777216"}},
      {"PickleZip",
       std::string("PK\x03\x04\x00\x00\x08\x08", 8) + good,
       {"pickled PyTorch", "tools/convert_pickle.py"}},
      {"GitLfsPointer", "version https://git-lfs.github.com/spec/v1", {"Git LFS pointer", "git lfs pull"}},
      {"NotJson", weights_file("{\"w\": nope}", 0), {"not JSON at byte"}},
      {"TruncatedJson", weights_file(good.substr(0, 20), 8), {"not JSON at byte"}},
      {"TopLevelArray", weights_file("[1,2]", 0), {"does not begin with {"}},
      {"Truncated", weights_file(good, 7), {"\"w\" ends at byte 8", "has 7", "cut short"}},
      {"BytesAfterTheEnd", weights_file(good, 12), {"ends at byte 8", "has 12", "belongs to no tensor"}},
      {"Overlap",
       weights_file("{" + tensor("a", "F32", "2", "0,8") + "," + tensor("b", "F32", "2", "4,12") + "}", 12),
       {"\"a\" and \"b\" overlap", "bytes 4 to 8"}},
      {"Hole",
       weights_file("{" + tensor("a", "F32", "1", "0,4") + "," + tensor("b", "F32", "1", "8,12") + "}", 12),
       {"hole before tensor \"b\"", "bytes 4 to 8"}},
      {"HoleAtStart", one("F32", "1", "4,8", 8), {"hole before tensor \"w\"", "bytes 0 to 4"}},
      {"ProductWrapsToZero", one("F32", "4294967296,4294967296", "0,0", 0), {"\"w\"", "larger than 2^63"}},
      {"ProductWrapsToTwo", one("I8", "6148914691236517206,3", "0,2", 2), {"\"w\"", "larger than 2^63"}},
      {"BytesWrap", one("F64", "2305843009213693952", "0,0", 0), {"\"w\"", "larger than 2^63"}},
      {"ZeroHidesOverflow", one("F32", "0,1099511627776,1099511627776", "0,0", 0), {"larger than 2^63"}},
      {"ShapeSaysMore", one("F32", "1000", "0,8", 8), {"\"w\"", "make 4000 bytes", "[0, 8] hold 8"}},
      {"ShapeSaysLess", one("F32", "1", "0,8", 8), {"make 4 bytes", "hold 8"}},
      {"NegativeDimension", one("F32", "-2", "0,8", 8), {"shape holds the negative number -2"}},
      {"FractionalDimension", one("F32", "2.0", "0,8", 8), {"shape holds the number \"2.0\""}},
      {"DimensionOver63Bits",
       one("F32", "9223372036854775808", "0,8", 8),
       {"shape holds the number 9223372036854775808"}},
      {"DimensionOver64Bits", one("F32", "18446744073709551618", "0,8", 8), {"shape holds the number"}},
      {"Rank17", one("F32", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2", "0,8", 8), {"more than 16 dimensions"}},
      {"ReversedOffsets", one("F32", "2", "8,0", 8), {"[8, 0] run backwards"}},
      {"NegativeOffsets", one("F32", "2", "-8,0", 8), {"data_offsets hold the negative number -8"}},
      {"OneOffset", one("F32", "2", "8", 8), {"fewer than two"}},
      {"ThreeOffsets", one("F32", "2", "0,4,8", 8), {"more than two"}},
      {"OffsetsNearTheTop",
       one("F32", "2", "18446744073709551607,18446744073709551615", 8),
       {"hole before tensor \"w\""}},
      {"UnknownDtype", one("F33", "2", "0,8", 8), {"\"w\"", "dtype \"F33\" is not one of F64 F32"}},
      {"DtypeIsANumber",
       weights_file("{\"w\":{\"dtype\":32,\"shape\":[2],\"data_offsets\":[0,8]}}", 8),
       {"dtype is the number 32"}},
      {"MissingDtype", weights_file("{\"w\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8), {"\"w\": has no dtype"}},
      {"MissingShape", weights_file("{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8), {"\"w\": has no shape"}},
      {"MissingOffsets", weights_file("{\"w\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8), {"\"w\": has no data_offsets"}},
      {"DuplicateTensor", weights_file(twice, 16), {"\"w\" appears twice"}},
      {"DuplicateField",
       weights_file("{\"w\":{\"dtype\":\"F64\",\"dtype\":\"F32\"}}", 8),
       {"\"w\"", "\"dtype\" appears twice"}},
      {"DuplicateMetadata", weights_file("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0), {"\"a\" appears twice"}},
      {"UnknownField", weights_file("{\"w\":{\"codec\":\"zip\"}}", 0), {"\"w\"", "unknown key \"codec\""}},
      {"MetadataNotText", weights_file("{\"__metadata__\":{\"a\":1}}", 0), {"__metadata__ \"a\" is the number 1"}},
      {"DeepJson", weights_file("{\"w\":" + std::string(1'000'000, '[') + "}", 0), {"\"w\": is an array"}},
      {"DeepObjects", weights_file("{\"w\":{\"shape\":[[[[1]]]]}}", 0), {"shape holds an array"}},
      {"BadUtf8", weights_file("{" + tensor("\xff", "F32", "2", "0,8") + "}", 8), {"not JSON at byte", "UTF-8"}},
      {"LoneSurrogate", weights_file("{" + tensor("\\ud800", "F32", "2", "0,8") + "}", 8), {"not JSON at byte"}},
      {"NewlineInName",
       weights_file("{" + tensor("a\\nb", "F32", "2", "0,8") + "}", 8),
       {"\"a\\x0ab\" holds a control character"}},
      {"TerminalEscapeInName", weights_file("{" + tensor("\\u001b[2J", "F32", "2", "0,8") + "}", 8), {"\\x1b[2J"}},
      {"EmptyName", weights_file("{" + tensor("", "F32", "2", "0,8") + "}", 8), {"tensor name \"\" is empty"}},
      {"LongName",
       weights_file("{" + tensor(std::string(513, 'n'), "F32", "2", "0,8") + "}", 8),
       {"has 513 bytes, at most 512"}},
      {"ZeroByteHidesTheRest", weights_file(good + std::string("\0junk", 5), 8), {"zero byte"}},
  };
}

class BadWeightsFile : public testing::TestWithParam<BadFile> {};

TEST_P(BadWeightsFile, IsRefusedWithCode4AndItsName) {
  const TemporaryFolder folder;
  const fs::path path = folder / "model.safetensors";
  write_bytes(path, GetParam().bytes);
  std::vector<std::string> parts = GetParam().message;
  parts.push_back(path.string());
  expect_refusal<WeightsError>([&] { SafetensorsFile file(path); }, ExitCode::kWeights, parts);
  expect_refusal<WeightsError>([&] { WeightsFolder weights(folder.path()); }, ExitCode::kWeights, parts);
}

INSTANTIATE_TEST_SUITE_P(Matrix, BadWeightsFile, testing::ValuesIn(bad_files()),
                         [](const auto& instance) { return instance.param.name; });

long peak_kilobytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

TEST(BadWeightsFileMemory, HugeHeaderInAHugeFileIsNotRead) {
  const TemporaryFolder folder;
  const fs::path path = folder / "huge.safetensors";
  write_bytes(path, length_prefix(uint64_t{1} << 30));
  fs::resize_file(path, uint64_t{4} << 30);  // sparse
  const long before = peak_kilobytes();
  expect_refusal<WeightsError>([&] { SafetensorsFile file(path); }, ExitCode::kWeights,
                               {"1073741824 bytes, at most 16777216"});
  EXPECT_LT(peak_kilobytes() - before, 32 << 10);
}

TEST(BadWeightsFileMemory, GiantStatedTensorIsNotAllocated) {
  const TemporaryFolder folder;
  write_bytes(folder / "giant.safetensors", one("F32", "1099511627776", "0,4398046511104", 8));
  const long before = peak_kilobytes();
  expect_refusal<WeightsError>([&] { SafetensorsFile file(folder / "giant.safetensors"); }, ExitCode::kWeights,
                               {"cut short"});
  EXPECT_LT(peak_kilobytes() - before, 32 << 10);
}

TEST(BadWeightsFileMemory, TooManyTensors) {
  const TemporaryFolder folder;
  std::string header = "{";
  for (int i = 0; i <= 100'000; ++i) header += (i == 0 ? "" : ",") + tensor("t" + std::to_string(i), "U8", "0", "0,0");
  write_bytes(folder / "many.safetensors", weights_file(header + "}", 0));
  expect_refusal<WeightsError>([&] { SafetensorsFile file(folder / "many.safetensors"); }, ExitCode::kWeights,
                               {"more than 100000 tensors"});
}

class NotAFile : public testing::Test {
 protected:
  void refused(const std::vector<std::string>& parts) {
    expect_refusal<WeightsError>([&] { SafetensorsFile file(path_); }, ExitCode::kWeights, parts);
    expect_refusal<WeightsError>([&] { WeightsFolder weights(folder_.path()); }, ExitCode::kWeights, parts);
  }
  TemporaryFolder folder_;
  fs::path path_ = folder_ / "model.safetensors";
};

TEST_F(NotAFile, FolderIsRefused) {
  fs::create_directory(path_);
  refused({path_.string(), "is a folder, wanted a regular file"});
}

TEST_F(NotAFile, FifoIsRefusedWithoutWaitingForAWriter) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  refused({path_.string(), "is a FIFO"});
}

TEST_F(NotAFile, LinkIsRefused) {
  write_bytes(folder_ / "elsewhere", weights_file_of({"w"}));
  fs::create_symlink("elsewhere", path_);
  refused({path_.string(), "is a symbolic link", "copy the file"});
}

TEST_F(NotAFile, LinkToNowhereIsRefused) {
  fs::create_symlink("nowhere", path_);
  refused({path_.string(), "is a symbolic link"});
}

TEST_F(NotAFile, DeviceIsRefused) {
  expect_refusal<WeightsError>([] { SafetensorsFile file("/dev/zero"); }, ExitCode::kWeights,
                               {"/dev/zero: is a device"});
}

TEST_F(NotAFile, AbsentFileIsNamed) {
  expect_refusal<WeightsError>([&] { SafetensorsFile file(path_); }, ExitCode::kWeights,
                               {path_.string(), "no such file"});
}

TEST(SafetensorsRead, FileCutShortAfterOpeningIsAnErrorAndNoCrash) {
  const TemporaryFolder folder;
  write_bytes(folder / "w.safetensors", weights_file_of({"a", "b"}));
  const SafetensorsFile file(folder / "w.safetensors");
  fs::resize_file(folder / "w.safetensors", fs::file_size(folder / "w.safetensors") - 8);
  expect_refusal<WeightsError>([&] { file.read(*file.find("b")); }, ExitCode::kWeights,
                               {"w.safetensors: ends at byte"});
  expect_refusal<WeightsError>([&] { file.read(*file.find("a")); }, ExitCode::kWeights,
                               {"changed from", "while it was read"});
}

TEST(SafetensorsRead, WrongDtypeOrShapeIsRefusedAndNeverCast) {
  const TemporaryFolder folder;
  write_bytes(folder / "w.safetensors", weights_file_of({"a"}));
  const SafetensorsFile file(folder / "w.safetensors");
  const auto refused = [&](at::Tensor destination, const std::vector<std::string>& parts) {
    expect_refusal<WeightsError>([&] { file.read_into(*file.find("a"), destination); }, ExitCode::kWeights, parts);
  };
  refused(at::ones({2}, at::kHalf), {"tensor \"a\"", "holds Float [2], wanted Half [2]"});
  refused(at::ones({2}, at::kInt), {"holds Float [2], wanted Int [2]"});
  refused(at::ones({1, 2}), {"holds Float [2], wanted Float [1,2]"});
  at::Tensor strided = at::ones({2, 2}).select(1, 0);
  expect_refusal<ContractError>([&] { file.read_into(*file.find("a"), strided); }, ExitCode::kUsage,
                                {"not contiguous"});
  EXPECT_TRUE(strided.eq(1).all().item<bool>());
}

class NonFiniteWeights : public testing::TestWithParam<at::ScalarType> {};

TEST_P(NonFiniteWeights, AreRefusedWithTensorAndIndexUnlessAllowed) {
  const TemporaryFolder folder;
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                           -std::numeric_limits<double>::infinity()}) {
    at::Tensor weights = at::ones({300, 70}, at::kDouble);
    weights[210][33] = bad;
    weights[299][69] = bad;
    write_safetensors(folder / "model.safetensors", {{"fine", at::ones({4})}, {"w", weights.to(GetParam())}});
    const WeightsFolder strict(folder.path());
    EXPECT_TRUE(strict.read("fine").eq(1).all().item<bool>());
    expect_refusal<WeightsError>(
        [&] { strict.read("w"); }, ExitCode::kWeights,
        {"model.safetensors", "tensor \"w\": element 14733 = [210,33] is NaN or infinite", "--allow-nonfinite"});
    const WeightsFolder lenient(folder.path(), NonFinite::kAllow);
    EXPECT_EQ(first_nonfinite(lenient.read("w")), 14733);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, NonFiniteWeights, testing::Values(at::kDouble, at::kFloat, at::kHalf, at::kBFloat16),
                         [](const auto& instance) { return std::string(c10::toString(instance.param)); });

TEST(NonFiniteWeights, FirstIsFoundAcrossThreadsAndPieces) {
  const TemporaryFolder folder;
  at::Tensor weights = at::zeros({8 << 20}, at::kBFloat16);  // 16 MiB: several threads, many pieces
  for (const int64_t place : {int64_t{0}, int64_t{262143}, int64_t{262144}, int64_t{5000001}, int64_t{(8 << 20) - 1}}) {
    weights.zero_();
    weights[place] = std::numeric_limits<float>::quiet_NaN();
    weights[(8 << 20) - 1] = std::numeric_limits<float>::infinity();
    write_safetensors(folder / "model.safetensors", {{"w", weights}});
    expect_refusal<WeightsError>([&] { WeightsFolder(folder.path()).read("w"); }, ExitCode::kWeights,
                                 {"element " + std::to_string(place) + " = "});
  }
}

}  // namespace
}  // namespace limbeck::io
