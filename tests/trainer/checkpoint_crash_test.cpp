// Power loss and kill -9 at every moment: what a save had returned for is there, and nothing half-written is taken for
// a checkpoint. Power loss is replayed from the recorded disk calls, with those not yet flushed lost or reordered.
#include <ATen/ATen.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <random>
#include <thread>

#include "tests/modules/weights_files.h"
#include "tests/support/checkpoint_cases.h"
#include "trainer/checkpoint/saver.h"
#include "trainer/checkpoint/verify.h"

namespace limbeck::checkpoint {
namespace {

namespace fs = std::filesystem;
using test::expect_holds;
using test::request_of;
using test::TemporaryFolder;

// Smaller than request_of: every call's data is kept and replayed some hundred times.
SaveRequest small_request(int64_t step) {
  SaveRequest request = request_of(step);
  for (Piece& piece : request.model) {
    if (piece.name == "large") piece = whole_tensor("large", piece.data.narrow(0, 0, 20));
  }
  request.optimizer.erase(request.optimizer.begin());
  return request;
}

class RecordingDisk : public test::WrappedDisk {
 public:
  using Call = WrappedDisk::Call;
  const std::vector<Call>& calls() const { return calls_; }

 private:
  int before(const Call&) override { return 0; }
  void after(const Call& call) override { calls_.push_back(call); }
  std::vector<Call> calls_;
};

using Call = RecordingDisk::Call;

// What a power loss may undo. A call counts as on disk once a later flush covered it.
enum class Loss { kNothing, kWrites, kNames, kBoth, kSome };

class Replay {
 public:
  Replay(const std::vector<Call>& calls, fs::path from, fs::path into)
      : calls_(calls), from_(std::move(from)), into_(std::move(into)) {}

  // The first `count` calls, less those that the loss takes, done in `into`.
  void run(size_t count, Loss loss, uint64_t seed) {
    const std::vector<bool> flushed = on_disk(count);
    std::mt19937_64 random(seed);
    std::map<int, int> open;  // recorded descriptor -> ours, -1 when its file was lost
    for (size_t i = 0; i < count; ++i) {
      const Call& call = calls_[i];
      const bool is_write = call.what == Call::kWrite;
      const bool may_go = loss == Loss::kBoth || loss == Loss::kSome || (loss == Loss::kWrites) == is_write;
      const bool lost = loss != Loss::kNothing && !flushed[i] && may_go && (loss != Loss::kSome || random() % 2 == 0);
      apply(call, lost, open);
    }
    for (const auto& [recorded, ours] : open) {
      if (ours >= 0) ::close(ours);
    }
  }

 private:
  fs::path here(const fs::path& path) const { return into_ / path.lexically_relative(from_); }

  std::vector<bool> on_disk(size_t count) const {
    std::vector<bool> flushed(count, false);
    for (size_t i = 0; i < count; ++i) {
      // A descriptor's number is used again: only up to its close.
      bool closed = false;
      for (size_t later = i + 1; later < count && !flushed[i]; ++later) {
        const Call& call = calls_[later];
        switch (calls_[i].what) {
          case Call::kWrite:
          case Call::kReserve:
            closed = closed || (call.what == Call::kClose && call.descriptor == calls_[i].descriptor);
            flushed[i] = !closed && call.what == Call::kFlush && call.descriptor == calls_[i].descriptor;
            break;
          case Call::kRename:
            flushed[i] = call.what == Call::kFlushFolder && call.path == calls_[i].to.parent_path();
            break;
          default:
            flushed[i] = call.what == Call::kFlushFolder && call.path == calls_[i].path.parent_path();
        }
      }
    }
    return flushed;
  }

  // Calls on something that was lost fail here, as they never happened.
  void apply(const Call& call, bool lost, std::map<int, int>& open) {
    const auto ours = [&] { return open.count(call.descriptor) != 0 ? open[call.descriptor] : -1; };
    std::error_code ignored;
    switch (call.what) {
      case Call::kCreate:
        open[call.descriptor] = lost ? -1 : ::open(here(call.path).c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
        break;
      case Call::kReserve:
        if (lost || ours() < 0) break;
        EXPECT_EQ(::ftruncate(ours(), static_cast<off_t>(call.bytes)), 0);
        break;
      case Call::kWrite:
        if (ours() < 0) break;
        if (lost) {
          ::lseek(ours(), static_cast<off_t>(call.data.size()), SEEK_CUR);  // zeros, or nothing, in its place
        } else {
          EXPECT_EQ(::write(ours(), call.data.data(), call.data.size()), static_cast<ssize_t>(call.data.size()));
        }
        break;
      case Call::kClose:
        if (ours() >= 0) ::close(ours());
        open.erase(call.descriptor);
        break;
      case Call::kRename:
        if (!lost) ::rename(here(call.path).c_str(), here(call.to).c_str());
        break;
      case Call::kExchange:
        if (!lost) io::posix_disk().exchange(here(call.path), here(call.to));
        break;
      case Call::kMake:
        if (!lost) fs::create_directory(here(call.path), ignored);
        break;
      case Call::kRemoveFile:
      case Call::kRemoveFolder:
        if (!lost) fs::remove(here(call.path), ignored);
        break;
      case Call::kFlush:
      case Call::kFlushFolder:
      case Call::kFree:
        break;
    }
  }

  const std::vector<Call>& calls_;
  fs::path from_, into_;
};

class PowerLoss : public testing::TestWithParam<Loss> {};

TEST_P(PowerLoss, AfterAnyCallKeepsEverySaveThatReturned) {
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  const auto solo = parallel::make_solo();
  RecordingDisk disk;
  std::vector<size_t> returned;  // calls made when save k + 1 returned
  {
    Saver saver(folder, *solo, {.keep = 1, .disk = disk});
    for (int64_t step = 1; step <= 3; ++step) {
      saver.save(small_request(step));
      returned.push_back(disk.calls().size());
    }
  }
  ASSERT_GT(disk.calls().size(), 100u);
  const int tries = GetParam() == Loss::kSome ? 2 : 1;
  for (size_t count = 0; count <= disk.calls().size(); ++count) {
    int64_t acknowledged = 0;
    for (const size_t at : returned) acknowledged += at <= count ? 1 : 0;
    for (int seed = 0; seed < tries; ++seed) {
      const TemporaryFolder after;
      Replay(disk.calls(), run.path(), after.path()).run(count, GetParam(), count * 31 + static_cast<uint64_t>(seed));
      std::vector<std::string> notes;
      const auto found = newest_good(after / "checkpoints", notes, /*strict=*/true);
      ASSERT_TRUE(found.has_value() || acknowledged == 0) << "after call " << count;
      if (!found) continue;
      const int64_t step = *step_of(found->filename().string());
      ASSERT_GE(step, acknowledged) << "after call " << count << " with seed " << seed;
      expect_holds(*found, small_request(step));
    }
  }
}

const char* name_of(Loss loss) {
  switch (loss) {
    case Loss::kNothing:
      return "Nothing";
    case Loss::kWrites:
      return "Writes";
    case Loss::kNames:
      return "Names";
    case Loss::kBoth:
      return "WritesAndNames";
    case Loss::kSome:
      break;
  }
  return "SomeOfBoth";
}

INSTANTIATE_TEST_SUITE_P(Of, PowerLoss,
                         testing::Values(Loss::kNothing, Loss::kWrites, Loss::kNames, Loss::kBoth, Loss::kSome),
                         [](const auto& instance) { return name_of(instance.param); });

// Saves step after step until it is killed, and says which it has saved.
[[noreturn]] void save_until_killed(const fs::path& folder, int64_t first, int pipe) {
  const auto solo = parallel::make_solo();
  Saver saver(folder, *solo, {.keep = 3});
  for (int64_t step = first;; ++step) {
    saver.save(request_of(step));
    if (::write(pipe, &step, sizeof(step)) != static_cast<ssize_t>(sizeof(step))) ::_exit(3);
  }
}

TEST(CheckpointKill, AtAnyMomentLosesNoAcknowledgedStepAndLeavesNoBadOne) {
  const char* wanted = std::getenv("LIMBECK_KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : 30;
  const TemporaryFolder run;
  const fs::path folder = run / "checkpoints";
  std::mt19937_64 random(7);
  int64_t acknowledged = 0;
  int saves = 0, leftovers = 0;
  for (int kill = 0; kill < kills; ++kill) {
    const auto listed = list_checkpoints(folder);
    const int64_t first = listed.empty() ? 1 : listed.front().step + 1;
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        save_until_killed(folder, first, ends[1]);
      } catch (const std::exception& error) {
        ::fprintf(stderr, "child: %s\n", error.what());
        ::_exit(4);
      }
    }
    ::close(ends[1]);
    // Some moment of its first, second or third save, however fast this disk is.
    const uint64_t seen = random() % 3;
    for (uint64_t i = 0; i<seen&& ::read(ends[0], &acknowledged, sizeof(acknowledged))> 0; ++i) ++saves;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 60'000));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
    for (int64_t step = 0; ::read(ends[0], &step, sizeof(step)) == static_cast<ssize_t>(sizeof(step)); ++saves) {
      acknowledged = step;
    }
    ::close(ends[0]);
    std::error_code not_yet;  // a child that was killed before it had made the folder left nothing
    for (const auto& entry : fs::directory_iterator(folder, not_yet)) {
      leftovers += entry.path().filename().string().starts_with(".tmp-") ? 1 : 0;
    }
    for (const Committed& committed : list_checkpoints(folder)) {
      ASSERT_EQ(first_fault(verify(committed.path)), "") << "committed and bad after kill " << kill;
    }
    std::vector<std::string> notes;
    const auto found = newest_good(folder, notes, true);
    ASSERT_TRUE(found.has_value() || acknowledged == 0);
    if (!found) continue;
    const int64_t step = *step_of(found->filename().string());
    ASSERT_GE(step, acknowledged);
    expect_holds(*found, request_of(step));
  }
  EXPECT_GT(saves, kills / 2) << "killed before anything was saved: this proves nothing";
  EXPECT_GT(leftovers, 0) << "never killed within a save: this proves nothing";
  RecordProperty("saves", saves);
  RecordProperty("leftovers", leftovers);
  std::printf("%d kills, %d saves acknowledged, %d leftovers\n", kills, saves, leftovers);
}

}  // namespace
}  // namespace limbeck::checkpoint
