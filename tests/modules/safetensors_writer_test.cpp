// What is written is what is read, in every dtype and layout; and nothing half-written is ever found under the name.
#include <ATen/ATen.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <functional>
#include <limits>

#include "modules/io/atomic_file.h"
#include "modules/io/json_file.h"
#include "modules/io/safetensors.h"
#include "tests/modules/weights_files.h"

namespace limbeck::io {
namespace {

using namespace limbeck::test;
namespace fs = std::filesystem;

size_t files_in(const fs::path& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator{}));
}

void expect_same(const at::Tensor& read, const at::Tensor& written) {
  ASSERT_EQ(read.scalar_type(), written.scalar_type());
  ASSERT_EQ(read.sizes(), written.sizes());
  const at::Tensor plain = written.contiguous();
  if (plain.nbytes() == 0) return;  // no memory to compare
  EXPECT_EQ(std::memcmp(read.const_data_ptr(), plain.const_data_ptr(), plain.nbytes()), 0);
}

TEST(SafetensorsRoundTrip, KeepsEveryDtypeShapeAndBit) {
  const TemporaryFolder folder;
  const at::Tensor base = at::arange(24, at::kDouble).reshape({2, 3, 4}).sub(7);
  NamedTensors tensors;
  for (const auto dtype : {at::kByte, at::kBool, at::kFloat8_e4m3fn, at::kFloat8_e5m2, at::kChar, at::kShort, at::kHalf,
                           at::kBFloat16, at::kInt, at::kFloat, at::kLong, at::kDouble}) {
    tensors.emplace_back(c10::toString(dtype), base.abs().to(dtype));
  }
  tensors.emplace_back("scalar", at::scalar_tensor(3.5));
  tensors.emplace_back("empty", at::empty({0, 5}, at::kHalf));
  tensors.emplace_back("transposed", base.transpose(0, 2));
  tensors.emplace_back("column", base.select(2, 1));
  tensors.emplace_back("expanded", at::ones({1, 3}).expand({4, 3}));
  tensors.emplace_back("name with größe \"quotes\" \\ and 重み", at::ones({2}));
  const fs::path path = folder / "all.safetensors";
  write_safetensors(path, tensors, {{"format", "pt"}, {"made", "by a test"}});

  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata().at("made"), "by a test");
  ASSERT_EQ(file.entries().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    ASSERT_NE(file.find(name), nullptr) << name;
    expect_same(file.read(*file.find(name)), tensor);
    EXPECT_EQ(file.find(name)->begin % tensor.element_size(), 0u) << name;  // aligned for readers that map
  }
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(SafetensorsRoundTrip, KeepsNaNPayloadsAndInfinities) {
  const TemporaryFolder folder;
  const at::Tensor bits = at::scalar_tensor(0x7FA12345, at::kInt).reshape({1});
  const at::Tensor odd = at::cat({bits, at::scalar_tensor(-8388608, at::kInt).reshape({1})}).view(at::kFloat);
  write_safetensors(folder / "x.safetensors", {{"odd", odd}});
  expect_same(read_safetensors(folder / "x.safetensors")[0].second, odd);
}

TEST(SafetensorsRoundTrip, LargeTensorReadByThreads) {
  const TemporaryFolder folder;
  const at::Tensor large = at::arange(int64_t{3'000'001}, at::kLong);
  write_safetensors(folder / "x.safetensors", {{"small", at::ones({3}, at::kByte)}, {"large", large}});
  const SafetensorsFile file(folder / "x.safetensors");
  expect_same(file.read(*file.find("large")), large);
  at::Tensor destination = at::zeros_like(large);
  file.read_into(*file.find("large"), destination);
  expect_same(destination, large);
}

TEST(SafetensorsRoundTrip, WritesPytorchMetadataByDefault) {
  const TemporaryFolder folder;
  write_safetensors(folder / "x.safetensors", {});
  const SafetensorsFile file(folder / "x.safetensors");
  EXPECT_EQ(file.metadata(), (std::map<std::string, std::string>{{"format", "pt"}}));
  EXPECT_EQ(fs::file_size(folder / "x.safetensors") % 8, 0u);
}

TEST(SafetensorsRoundTrip, ShardsFollowTheLimitAndTheIndexNamesThem) {
  const TemporaryFolder folder;
  NamedTensors tensors;
  for (int i = 0; i < 5; ++i)
    tensors.emplace_back("t" + std::to_string(i), at::full({10}, i, at::kFloat));  // 40 bytes each
  tensors.emplace_back("wide", at::full({100}, 9, at::kFloat));
  write_weights_folder(folder / "model", tensors, 100);
  EXPECT_TRUE(fs::exists(folder / "model/model-00001-of-00004.safetensors"));
  EXPECT_EQ(files_in(folder / "model"), 5u);
  const JsonFile index(folder / "model/model.safetensors.index.json");
  EXPECT_EQ(index.child("metadata").integer("total_size", 0, 1 << 20), 600);
  const WeightsFolder weights(folder / "model");
  EXPECT_TRUE(weights.notes().empty());
  for (const auto& [name, tensor] : tensors) expect_same(weights.read(name), tensor);
  EXPECT_EQ(weights.file_of("wide").filename(), "model-00004-of-00004.safetensors");
  expect_refusal<UsageError>([&] { write_weights_folder(folder / "model", tensors, 1 << 20); }, ExitCode::kUsage,
                             {"is there already"});
}

TEST(SafetensorsRoundTrip, OneShardIsPlainModelSafetensors) {
  const TemporaryFolder folder;
  write_weights_folder(folder.path(), {{"a", at::ones({2})}}, 1 << 20);
  EXPECT_EQ(files_in(folder.path()), 1u);
  EXPECT_EQ(WeightsFolder(folder.path()).names(), std::vector<std::string>{"a"});
}

TEST(SafetensorsWriter, RefusesWhatTheReaderWouldRefuse) {
  const TemporaryFolder folder;
  const fs::path path = folder / "x.safetensors";
  const auto refused = [&](const NamedTensors& tensors, const std::string& part) {
    expect_refusal<WeightsError>([&] { write_safetensors(path, tensors); }, ExitCode::kWeights, {path.string(), part});
  };
  refused({{"", at::ones({1})}}, "is empty");
  refused({{"a\nb", at::ones({1})}}, "control character");
  refused({{"\xff", at::ones({1})}}, "not UTF-8");
  refused({{std::string(513, 'n'), at::ones({1})}}, "513 bytes");
  refused({{"__metadata__", at::ones({1})}}, "is reserved");
  refused({{"a", at::ones({1})}, {"a", at::ones({1})}}, "\"a\" appears twice");
  refused({{"a", at::ones(std::vector<int64_t>(17, 1))}}, "dimensions");
  const auto contract = [&](const at::Tensor& tensor, const std::string& part) {
    expect_refusal<ContractError>([&] { write_safetensors(path, {{"a", tensor}}); }, ExitCode::kUsage, {"\"a\"", part});
  };
  contract(at::ones({2}, at::kComplexFloat), "ComplexFloat");
  contract(at::ones({2}, at::kMeta), "no plain storage");
  contract(at::Tensor(), "undefined");
  EXPECT_EQ(files_in(folder.path()), 0u);
}

TEST(SafetensorsWriter, ReplacesTheOldFileOnlyWhenComplete) {
  const TemporaryFolder folder;
  const fs::path path = folder / "x.safetensors";
  write_safetensors(path, {{"a", at::zeros({2})}});
  const std::string old = read_bytes(path);
  {
    AtomicFile file(path, 100);
    file.write("partial", 7);
    EXPECT_EQ(read_bytes(path), old);
    expect_refusal<IoError>([&] { file.commit(); }, ExitCode::kIo, {"7 bytes were written, 100 announced"});
  }
  EXPECT_EQ(read_bytes(path), old);
  EXPECT_EQ(files_in(folder.path()), 1u);
  write_safetensors(path, {{"a", at::ones({2})}});
  EXPECT_NE(read_bytes(path), old);
}

TEST(SafetensorsWriter, FullDiskIsSaidInBytesBeforeWriting) {
  const TemporaryFolder folder;
  expect_refusal<IoError>([&] { AtomicFile file(folder / "x", uint64_t{1} << 60); }, ExitCode::kIo,
                          {"No space left", "1152921504606846976 bytes are needed", "are available"});
  EXPECT_EQ(files_in(folder.path()), 0u);
}

TEST(SafetensorsWriter, UnusableTargetsAreErrorsOfInputOutput) {
  const TemporaryFolder folder;
  const NamedTensors tensors{{"a", at::ones({2})}};
  expect_refusal<IoError>([&] { write_safetensors(folder / "no/such/x", tensors); }, ExitCode::kIo,
                          {"cannot be created"});
  fs::create_directory(folder / "taken");
  expect_refusal<IoError>([&] { write_safetensors(folder / "taken", tensors); }, ExitCode::kIo,
                          {"taken: is a folder, wanted the name of a file, new or to be replaced"});
  EXPECT_EQ(files_in(folder.path()), 1u);  // no temporary left
}

// In a child, because limits and mounts belong to the process. Exit 0: as wanted; 1: not; 2: cannot be tried here.
int in_child(const std::function<int()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    int code = 1;
    try {
      code = action();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(code);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

template <typename Action>
bool throws_io_error(Action action, const std::string& part) {
  try {
    action();
  } catch (const IoError& error) {
    if (std::string(error.what()).find(part) != std::string::npos) return true;
    std::fprintf(stderr, "child: %s\n", error.what());
  }
  return false;
}

TEST(SafetensorsWriter, FileSizeLimitLeavesTheOldFileAndNoTemporary) {
  const TemporaryFolder folder;
  const fs::path path = folder / "x.safetensors";
  write_safetensors(path, {{"a", at::zeros({2})}});
  const std::string old = read_bytes(path);
  const at::Tensor large = at::zeros({1 << 18});
  EXPECT_EQ(in_child([&] {
              ::signal(SIGXFSZ, SIG_IGN);
              const rlimit limit{1 << 16, 1 << 16};
              ::setrlimit(RLIMIT_FSIZE, &limit);
              return throws_io_error([&] { write_safetensors(path, {{"a", large}}); }, "x.safetensors") ? 0 : 1;
            }),
            0);
  EXPECT_EQ(read_bytes(path), old);
  EXPECT_EQ(files_in(folder.path()), 1u);
}

TEST(SafetensorsWriter, ReallyFullFilesystemLeavesTheOldFileAndNoTemporary) {
  const TemporaryFolder folder;
  const at::Tensor small = at::zeros({2}), large = at::zeros({1 << 18});  // 1 MiB of data on a 512 KiB disk
  const int outcome = in_child([&] {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=512k") != 0) {
      return 2;
    }
    const fs::path path = folder / "x.safetensors";
    write_safetensors(path, {{"a", small}});
    const std::string old = read_bytes(path);
    bool right = throws_io_error([&] { write_safetensors(path, {{"a", large}}); }, "bytes are needed");
    // A file that outgrows what was announced meets the full disk in the write itself.
    const std::string block(1 << 20, 'x');
    right = right && throws_io_error([&] { AtomicFile(path, 0).write(block.data(), block.size()); }, "No space left");
    return right && read_bytes(path) == old && files_in(folder.path()) == 1 ? 0 : 1;
  });
  if (outcome == 2) GTEST_SKIP() << "mounting a small tmpfs needs privileges this machine does not give";
  EXPECT_EQ(outcome, 0);
}

}  // namespace
}  // namespace limbeck::io
