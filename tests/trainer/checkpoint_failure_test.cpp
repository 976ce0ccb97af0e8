// A save that fails, at any call and on any disk, leaves the checkpoints before it whole and the next save able.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "tests/modules/weights_files.h"
#include "tests/support/checkpoint_cases.h"
#include "tests/support/thread_ranks.h"
#include "tests/trainer/message_of.h"
#include "trainer/checkpoint/async_saver.h"
#include "trainer/checkpoint/saver.h"
#include "trainer/checkpoint/verify.h"

namespace limbeck::checkpoint {
namespace {

namespace fs = std::filesystem;
using test::expect_holds;
using test::FailingDisk;
using test::part_of;
using test::request_of;
using test::run_ranks;
using test::save_alone;
using test::TemporaryFolder;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

class EveryDiskCall : public testing::TestWithParam<int> {};

TEST_P(EveryDiskCall, FailingOnceLosesNothingAndTheNextSaveSucceeds) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  save_alone(folder, request_of(1));
  save_alone(folder, request_of(2));
  const auto solo = parallel::make_solo();
  int64_t step = 3, failures = 0;
  for (int64_t which = 1;; ++which) {
    SCOPED_TRACE(which);
    FailingDisk disk(which, GetParam());
    const fs::path newest = list_checkpoints(folder).front().path;
    Saver saver(folder, *solo, {.keep = 2, .disk = disk});
    bool saved = true;
    try {
      const SaveReport report = saver.save(request_of(step));
      EXPECT_EQ(disk.failed() && !disk.was_question(), !report.warnings.empty()) << "the failure was swallowed";
    } catch (const IoError& error) {
      saved = false;
      ++failures;
      EXPECT_NE(std::string(error.what()).find(std::strerror(GetParam())), std::string::npos) << error.what();
      EXPECT_EQ(list_checkpoints(folder).front().path, newest) << "a partial step is listed";
    }
    std::vector<std::string> notes;
    EXPECT_EQ(newest_good(folder, notes, true), saved ? folder / step_name(kStepPrefix, step) : newest);
    EXPECT_TRUE(disk.failed() || saved);
    if (!saved) expect_holds(saver.save(request_of(step)).path, request_of(step));
    if (!disk.failed()) break;
    ++step;
  }
  EXPECT_GT(failures, 30) << "fewer calls than a save makes";
}

INSTANTIATE_TEST_SUITE_P(Errors, EveryDiskCall, testing::Values(ENOSPC, EIO),
                         [](const auto& instance) { return instance.param == ENOSPC ? "ENOSPC" : "EIO"; });

TEST(CheckpointFailure, OfOneRankIsTheSameErrorOnAllAndNamesTheRank) {
  const TemporaryFolder run;
  int failures = 0;
  for (int64_t which = 1;; ++which) {
    SCOPED_TRACE(which);
    const fs::path folder = run / ("checkpoints-" + std::to_string(which));
    FailingDisk failing(which, EIO);
    const auto thrown = run_ranks(3, [&](parallel::Communicator& ranks) {
      Saver saver(folder, ranks, {.keep = 0, .disk = ranks.rank() == 1 ? failing : io::posix_disk()});
      saver.save(part_of(request_of(which), ranks.rank(), 3));
    });
    if (!failing.failed()) break;
    if (failing.was_question()) continue;
    ++failures;
    EXPECT_EQ(thrown[0].find("rank 1 of 3: " + folder.string()), 0u) << thrown[0];
    EXPECT_NE(thrown[0].find("Input/output error"), std::string::npos) << thrown[0];
    EXPECT_EQ(thrown[1], thrown[0]);
    EXPECT_EQ(thrown[2], thrown[0]);
    EXPECT_EQ(names_in(folder), std::vector<std::string>());
  }
  EXPECT_GT(failures, 8) << "fewer calls than a rank makes";
}

TEST(CheckpointFailure, ReallyFullDiskKeepsThePreviousStep) {
  const TemporaryFolder run;
  const pid_t child = ::fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", run.path().c_str(), "tmpfs", 0, "size=6m") != 0) {
      ::_exit(2);
    }
    const fs::path folder = run / "checkpoints";
    save_alone(folder, request_of(1));  // 2.4 MB of 6
    save_alone(folder, request_of(2));
    const std::string refused = test::message_of([&] { save_alone(folder, request_of(3)); });
    EXPECT_NE(refused.find("No space left on device"), refused.npos) << refused;
    EXPECT_NE(refused.find("bytes are needed"), refused.npos) << refused;
    // Now without the question beforehand and without reserving: the disk is full in the middle of a write.
    struct Blind : test::WrappedDisk {
      int before(const Call&) override { return 0; }
      int reserve(int, uint64_t) override { return 0; }
      int free_bytes(const Path&, uint64_t& bytes) override {
        bytes = uint64_t{1} << 40;
        return 0;
      }
    } blind;
    const std::string broken = test::message_of([&] { save_alone(folder, request_of(3), 0, blind); });
    EXPECT_NE(broken.find("cannot be written: No space left on device"), broken.npos) << broken;
    EXPECT_EQ(names_in(folder), (std::vector<std::string>{"latest", "step-00000001", "step-00000002"}));
    expect_holds(folder / "step-00000002", request_of(2));
    remove_checkpoint(folder / "step-00000001", "test", io::posix_disk());
    expect_holds(save_alone(folder, request_of(3)), request_of(3));
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "mounting a small tmpfs needs privileges this machine does not give";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(CheckpointFailure, ReadOnlyFolderIsAnErrorAndTheNextSaveSucceeds) {
  const TemporaryFolder run;
  const pid_t child = ::fork();
  if (child == 0) {
    // Root may write into every folder; nobody on a read-only mount.
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", run.path().c_str(), "tmpfs", 0, "size=16m") != 0) {
      ::_exit(2);
    }
    const fs::path folder = run / "checkpoints";
    const auto solo = parallel::make_solo();
    Saver saver(folder, *solo);
    saver.save(request_of(1));
    if (::mount(nullptr, run.path().c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0) ::_exit(2);
    const std::string message = test::message_of([&] { saver.save(request_of(2)); });
    EXPECT_EQ(message.substr(0, 3), "6: ") << message;
    EXPECT_NE(message.find("Read-only file system"), message.npos) << message;
    std::vector<std::string> notes;
    EXPECT_EQ(newest_good(folder, notes, true), folder / "step-00000001");
    if (::mount(nullptr, run.path().c_str(), nullptr, MS_REMOUNT, nullptr) != 0) ::_exit(2);
    expect_holds(saver.save(request_of(2)).path, request_of(2));
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 2) GTEST_SKIP() << "mounting a tmpfs needs privileges this machine does not give";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(CheckpointFailure, VanishedFolderIsAnErrorAndIsNotMadeAgain) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  const auto solo = parallel::make_solo();
  Saver saver(folder, *solo);
  saver.save(request_of(1));
  fs::rename(folder, run / "elsewhere");
  const std::string message = test::message_of([&] { saver.save(request_of(2)); });
  EXPECT_EQ(message.substr(0, 3), "6: ") << message;
  EXPECT_NE(message.find("No such file or directory"), message.npos) << message;
  EXPECT_FALSE(fs::exists(folder));
  fs::rename(run / "elsewhere", folder);
  expect_holds(saver.save(request_of(2)).path, request_of(2));
  expect_holds(folder / "step-00000001", request_of(1));
}

TEST(CheckpointRetention, KeepsTheNewestGoodOnes) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  const auto solo = parallel::make_solo();
  Saver saver(folder, *solo, {.keep = 2});
  for (int64_t step = 1; step <= 4; ++step) saver.save(request_of(step));
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{"latest", "step-00000003", "step-00000004"}));
  // A damaged one counts for nothing: the last good one before it stays.
  fs::resize_file(folder / "step-00000004" / kStateName, 1);
  saver.save(request_of(5));
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{"latest", "step-00000003", "step-00000004", "step-00000005"}));
  saver.save(request_of(6));
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{"latest", "step-00000005", "step-00000006"}));
}

TEST(CheckpointRetention, OfAnotherProcessReadsWhatItHasNotSavedItself) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  save_alone(folder, request_of(1));
  const fs::path damaged = save_alone(folder, request_of(2)) / "model-00000.safetensors";
  std::string bytes = test::read_bytes(damaged);
  bytes.back() ^= 1;  // the sizes are right
  test::write_bytes(damaged, bytes);
  save_alone(folder, request_of(3), 2);
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{"latest", "step-00000001", "step-00000002", "step-00000003"}));
}

TEST(CheckpointRetention, NeverRemovesTheOneJustSavedThoughNewerExist) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  save_alone(folder, request_of(8));
  save_alone(folder, request_of(9));
  save_alone(folder, request_of(5), 1);
  EXPECT_TRUE(fs::exists(folder / "step-00000005"));
}

TEST(CheckpointRetention, LeftoversOfADeadProcessAreSwept) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  save_alone(folder, request_of(1));
  fs::create_directories(folder / ".tmp-step-00000002-x" / "deep");
  test::write_bytes(folder / ".tmp-step-00000002-x" / "deep" / "part", "x");
  test::write_bytes(folder / ".tmp-latest-1-1", "x");
  const auto solo = parallel::make_solo();
  const Saver saver(folder, *solo);
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{"latest", "step-00000001"}));
  EXPECT_TRUE(saver.leftovers().empty());
}

TEST(AsyncSaver, SavesWhatWasThereWhenItStarted) {
  const TemporaryFolder run;
  const auto solo = parallel::make_solo();
  AsyncSaver saver(run / "checkpoints", *solo);
  SaveRequest request = request_of(1);
  saver.start(request);
  const SaveRequest wanted = request_of(1);
  for (auto* pieces : {&request.model, &request.optimizer}) {
    for (const Piece& piece : *pieces) piece.data.fill_(3);  // training goes on
  }
  saver.drain();
  EXPECT_EQ(saver.take_error(), nullptr);
  const auto report = saver.take_report();
  ASSERT_TRUE(report);
  EXPECT_GT(report->stage_seconds, 0);
  expect_holds(report->path, wanted);
  EXPECT_FALSE(saver.take_report());
}

TEST(AsyncSaver, ReusesItsMemory) {
  const TemporaryFolder run;
  const auto solo = parallel::make_solo();
  AsyncSaver saver(run / "checkpoints", *solo);
  saver.start(request_of(1));
  const size_t bytes = saver.staging_bytes();
  const void* memory = saver.staging_memory();
  for (int64_t step = 2; step <= 4; ++step) {
    saver.start(request_of(step));
    EXPECT_EQ(saver.staging_bytes(), bytes);
    EXPECT_EQ(saver.staging_memory(), memory);
  }
  saver.drain();
  for (int64_t step = 1; step <= 4; ++step) expect_holds(saver.take_report()->path, request_of(step));
}

TEST(AsyncSaver, ErrorsAreKeptInOrderAndTheNextSaveSucceeds) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  const auto solo = parallel::make_solo();
  AsyncSaver saver(folder, *solo);
  saver.start(request_of(1));
  saver.start(request_of(1));  // is there already
  fs::path aside = run / "aside";
  saver.drain();
  fs::rename(folder, aside);
  saver.start(request_of(2));
  saver.drain();
  fs::rename(aside, folder);
  saver.start(request_of(3));
  saver.drain();
  const auto text = [&] { return test::message_of([&] { std::rethrow_exception(saver.take_error()); }); };
  EXPECT_NE(text().find("is there already"), std::string::npos);
  EXPECT_NE(text().find("No such file"), std::string::npos);
  EXPECT_EQ(saver.take_error(), nullptr);
  EXPECT_EQ(saver.take_report()->path, folder / "step-00000001");
  EXPECT_EQ(saver.take_report()->path, folder / "step-00000003");
}

TEST(AsyncSaver, EndsOnlyWhenWhatItStartedIsSaved) {
  const TemporaryFolder run;
  const auto solo = parallel::make_solo();
  {
    AsyncSaver saver(run / "checkpoints", *solo);
    saver.start(request_of(1));
  }
  expect_holds(run / "checkpoints" / "step-00000001", request_of(1));
}

TEST(AsyncSaver, OfThreeRanksSavesOnAll) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  const auto thrown = run_ranks(3, [&](parallel::Communicator& ranks) {
    AsyncSaver saver(folder, ranks);
    saver.start(part_of(request_of(1), ranks.rank(), 3));
    saver.start(part_of(request_of(2), ranks.rank(), 3));
    saver.drain();
    if (const auto error = saver.take_error()) std::rethrow_exception(error);
  });
  EXPECT_EQ(thrown, std::vector<std::string>(3));
  expect_holds(folder / "step-00000001", request_of(1));
  expect_holds(folder / "step-00000002", request_of(2));
}

}  // namespace
}  // namespace limbeck::checkpoint
