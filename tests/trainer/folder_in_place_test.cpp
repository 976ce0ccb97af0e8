// A saved model takes the place of an older one: whatever call the process dies before or after, one of them is there.
#include "modules/io/folder_in_place.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "modules/errors.h"
#include "modules/io/temporary_folder.h"
#include "tests/modules/weights_files.h"
#include "tests/support/checkpoint_cases.h"
#include "tests/support/temporary_folder.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;

// Ends the process, as kill -9 does, before its n-th call or right after it; without exchanges it is a filesystem that
// has none.
class DyingDisk : public test::WrappedDisk {
 public:
  DyingDisk(int which, bool after, bool exchanges) : left_(which), after_(after), exchanges_(exchanges) {}

 private:
  int before(const Call& call) override {
    if (call.what == Call::kExchange && !exchanges_) return EINVAL;
    if (--left_ == 0 && !after_) ::_exit(kDied);
    return 0;
  }
  void after(const Call&) override {
    if (left_ == 0 && after_) ::_exit(kDied);
  }

 public:
  static constexpr int kDied = 9;

 private:
  int left_;
  bool after_, exchanges_;
};

void write_model(const fs::path& folder, const std::string& text) {
  fs::create_directories(folder);
  for (const char* name : {"config.json", "model.safetensors"}) test::write_bytes(folder / name, text);
}

std::string model_in(const fs::path& folder) {
  const std::string config = test::read_bytes(folder / "config.json");
  EXPECT_EQ(config, test::read_bytes(folder / "model.safetensors"));
  return config;
}

// How the process that placed `fresh` ended: true, it died.
bool dies_placing(const fs::path& fresh, const fs::path& target, int call, bool after, bool exchanges) {
  const pid_t child = ::fork();
  if (child == 0) {
    DyingDisk disk(call, after, exchanges);
    put_folder_in_place(fresh, target, disk);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  return WEXITSTATUS(status) == DyingDisk::kDied;
}

TEST(FolderInPlace, AKillAtAnyCallLeavesOneOfTheTwoWhole) {
  for (const bool exchanges : {true, false}) {
    for (const bool after : {false, true}) {
      int call = 1, old = 0, fresh = 0;
      for (bool died = true; died; ++call) {
        const TemporaryFolder folder;
        const fs::path target = folder / "best";
        write_model(target, "old");
        write_model(folder / ".best.new", "fresh");
        died = dies_placing(folder / ".best.new", target, call, after, exchanges);
        recover_folder(target);
        const std::string found = model_in(target);
        EXPECT_TRUE(found == "old" || found == "fresh") << found;
        (found == "old" ? old : fresh) += 1;
        EXPECT_FALSE(fs::exists(folder / ".best.old"));
        // And the next save goes through.
        fs::remove_all(folder / ".best.new");
        write_model(folder / ".best.new", "next");
        put_folder_in_place(folder / ".best.new", target);
        EXPECT_EQ(model_in(target), "next");
        EXPECT_FALSE(fs::exists(folder / ".best.new"));
      }
      EXPECT_GE(call, exchanges ? 4 : 5);  // flush, exchange or two renames, flush
      EXPECT_GE(old, 1);
      EXPECT_GE(fresh, 2);
    }
  }
}

TEST(FolderInPlace, AFailureLeavesTheOlderOne) {
  for (int64_t call = 1;; ++call) {
    const TemporaryFolder folder;
    write_model(folder / "best", "old");
    write_model(folder / ".best.new", "fresh");
    test::FailingDisk disk(call, EIO);
    try {
      put_folder_in_place(folder / ".best.new", folder / "best", disk);
    } catch (const IoError& error) {
      EXPECT_NE(std::string(error.what()).find("best"), std::string::npos) << error.what();
    }
    const std::string found = model_in(folder / "best");
    EXPECT_TRUE(found == "old" || found == "fresh");
    if (!disk.failed()) break;
  }
}

TEST(FolderInPlace, ATemporaryFolderIsNeverOneThatIsThere) {
  const TemporaryFolder folder;
  const std::string first = io::TemporaryFolder(folder / "best").path().string();
  const size_t end = first.rfind('-') + 1;
  const std::string next = first.substr(0, end) + std::to_string(std::stoull(first.substr(end)) + 1);
  write_model(next, "somebody else's");
  {
    const io::TemporaryFolder made(folder / "best");
    EXPECT_NE(made.path(), next);
    EXPECT_TRUE(fs::is_empty(made.path()));
  }
  EXPECT_EQ(model_in(next), "somebody else's");
}

}  // namespace
}  // namespace limbeck::io
