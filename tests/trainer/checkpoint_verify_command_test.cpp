// `limbeck verify` on what a run has saved: a run, its checkpoints folder, one checkpoint; exit code 4 for a bad one.
#include <gtest/gtest.h>

#include "tests/modules/weights_files.h"
#include "tests/support/checkpoint_cases.h"
#include "tests/trainer/message_of.h"
#include "trainer/checkpoint/verify.h"
#include "trainer/cli/app.h"

namespace limbeck::checkpoint {
namespace {

namespace fs = std::filesystem;

std::string output_of(const fs::path& path) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(cli::App({"verify", path.string()}).run(), 0);
  return testing::internal::GetCapturedStdout();
}

TEST(VerifyCommand, ReadsARunItsCheckpointsOrOneOfThem) {
  const test::TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  test::save_alone(folder, test::request_of(1));
  const fs::path newest = test::save_alone(folder, test::request_of(2));
  for (const fs::path& path : {run.path(), folder}) {
    const std::string out = output_of(path);
    EXPECT_NE(out.find("2 checkpoints, 8 files, every byte is what was saved"), out.npos) << out;
  }
  for (const fs::path& path : {newest, newest / ""}) {
    const std::string out = output_of(path);
    EXPECT_NE(out.find("1 checkpoints, 4 files"), out.npos) << out;
    EXPECT_NE(out.find("model-00000.safetensors"), out.npos) << out;
  }
}

TEST(VerifyCommand, NamesTheBadFileAndTensorWithExitCodeFour) {
  const test::TemporaryFolder run;
  test::save_alone(run / "checkpoints", test::request_of(1));
  const fs::path file = test::save_alone(run / "checkpoints", test::request_of(2)) / "optim-00000.safetensors";
  std::string bytes = test::read_bytes(file);
  bytes.back() ^= 1;
  test::write_bytes(file, bytes);
  testing::internal::CaptureStdout();
  const std::string message = test::message_of([&] { cli::App({"verify", run.path().string()}).run(); });
  const std::string out = testing::internal::GetCapturedStdout();
  EXPECT_EQ(message.substr(0, 3), "4: ") << message;
  EXPECT_NE(message.find("1 of 8 files are bad, the first: " + file.string() + ": tensor \"large\""), message.npos)
      << message;
  EXPECT_NE(out.find("BAD"), out.npos) << out;
}

TEST(VerifyCommand, StepThatLostItsManifestIsBadAndNotUnknown) {
  const test::TemporaryFolder run;
  const fs::path path = test::save_alone(run / "checkpoints", test::request_of(2));
  fs::remove(path / kManifestName);
  testing::internal::CaptureStdout();
  const std::string message = test::message_of([&] { cli::App({"verify", path.string()}).run(); });
  testing::internal::GetCapturedStdout();
  EXPECT_EQ(message.substr(0, 3), "4: ") << message;
  EXPECT_NE(message.find("MANIFEST.json: no such file"), message.npos) << message;
}

TEST(VerifyCommand, FolderOfNeitherKindSaysWhatWasWanted) {
  const test::TemporaryFolder run;
  const std::string message = test::message_of([&] { cli::App({"verify", run.path().string()}).run(); });
  EXPECT_EQ(message.substr(0, 3), "3: ") << message;
  EXPECT_NE(message.find("no manifest.json there"), message.npos) << message;
}

}  // namespace
}  // namespace limbeck::checkpoint
