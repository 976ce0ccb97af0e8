// Files past the page cache and through it hold the same bytes, whatever the pieces they were written in.
#include "modules/io/new_file.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "modules/errors.h"
#include "tests/support/temporary_folder.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;

// The real disk, which counts what goes which way and holds callers to what they promised for them.
class WatchedDisk : public Disk {
 public:
  size_t direct_bytes = 0, cached_bytes = 0;
  bool takes_direct = true;
  size_t direct_until = SIZE_MAX;  // bytes after which direct writes are refused
  size_t most_per_write = SIZE_MAX;

  int create(const Path& path, int& descriptor) override { return posix_disk().create(path, descriptor); }
  int reserve(int descriptor, uint64_t bytes) override { return posix_disk().reserve(descriptor, bytes); }
  int set_direct(int descriptor, bool direct) override {
    if (direct && !takes_direct) return EINVAL;
    direct_ = direct;
    posix_disk().set_direct(descriptor, direct);  // a filesystem that cannot is no matter: the rules are kept here
    return 0;
  }
  int write(int descriptor, const void* data, size_t bytes, size_t& written) override {
    if (direct_) {
      const bool kept = reinterpret_cast<uintptr_t>(data) % kDirectBlock == 0 && bytes % kDirectBlock == 0 &&
                        at_ % kDirectBlock == 0 && at_ < direct_until;
      if (!kept) return EINVAL;
    }
    const int error = posix_disk().write(descriptor, data, std::min(bytes, most_per_write), written);
    (direct_ ? direct_bytes : cached_bytes) += written;
    at_ += written;
    return error;
  }
  int flush(int descriptor) override { return posix_disk().flush(descriptor); }
  int close(int descriptor) override { return posix_disk().close(descriptor); }
  int rename(const Path& from, const Path& to) override { return posix_disk().rename(from, to); }
  int exchange(const Path& one, const Path& other) override { return posix_disk().exchange(one, other); }
  int make_folder(const Path& path) override { return posix_disk().make_folder(path); }
  int remove_file(const Path& path) override { return posix_disk().remove_file(path); }
  int remove_folder(const Path& path) override { return posix_disk().remove_folder(path); }
  int flush_folder(const Path& path) override { return posix_disk().flush_folder(path); }
  int free_bytes(const Path& path, uint64_t& bytes) override { return posix_disk().free_bytes(path, bytes); }

 private:
  bool direct_ = false;
  size_t at_ = 0;
};

class NewFileTest : public ::testing::TestWithParam<const char*> {
 protected:
  void expect_written(WatchedDisk& disk, size_t bytes, size_t most_of_a_piece) {
    std::mt19937 random(static_cast<uint32_t>(bytes + most_of_a_piece));
    std::string wanted(bytes, '\0');
    for (char& byte : wanted) byte = static_cast<char>(random());
    const fs::path path = folder_ / "file";
    NewFile file(disk, path, bytes, "file");
    for (size_t at = 0; at < bytes;) {
      const size_t piece = std::min<size_t>(bytes - at, 1 + random() % most_of_a_piece);
      file.write(wanted.data() + at, piece);
      at += piece;
    }
    file.flush();
    file.finish();
    std::ifstream in(path, std::ios::binary);
    const std::string found{std::istreambuf_iterator<char>(in), {}};
    EXPECT_TRUE(found == wanted) << bytes << " bytes in pieces of at most " << most_of_a_piece;
    fs::remove(path);
  }

  const test::TemporaryFolder folder_{GetParam()};
};

constexpr size_t kMebibyte = size_t{1} << 20;

TEST_P(NewFileTest, LargeFilesGoPastTheCacheButForTheirEnd) {
  for (const size_t bytes : {kMebibyte, 4 * kMebibyte, 4 * kMebibyte + 1, 12 * kMebibyte - 1, 12 * kMebibyte}) {
    for (const size_t piece : {size_t{70'000}, 9 * kMebibyte}) {
      WatchedDisk disk;
      expect_written(disk, bytes, piece);
      EXPECT_EQ(disk.direct_bytes, bytes / kDirectBlock * kDirectBlock);
      EXPECT_EQ(disk.cached_bytes, bytes % kDirectBlock);
    }
  }
}

TEST_P(NewFileTest, SmallFilesGoThroughTheCache) {
  for (const size_t bytes : {size_t{0}, size_t{1}, kMebibyte - 1}) {
    WatchedDisk disk;
    expect_written(disk, bytes, 3 * kMebibyte);
    EXPECT_EQ(disk.direct_bytes, 0u);
  }
}

TEST_P(NewFileTest, AFilesystemWithoutDirectWritesGetsTheSameBytes) {
  WatchedDisk disk;
  disk.takes_direct = false;
  expect_written(disk, 9 * kMebibyte + 77, kMebibyte);
  EXPECT_EQ(disk.direct_bytes, 0u);
}

TEST_P(NewFileTest, DirectWritesThatAreRefusedOnTheWayGoThroughTheCache) {
  WatchedDisk disk;
  disk.direct_until = 4 * kMebibyte;
  expect_written(disk, 21 * kMebibyte + 5, kMebibyte);
  EXPECT_EQ(disk.direct_bytes, 4 * kMebibyte);
}

TEST_P(NewFileTest, ShortDirectWritesAreContinued) {
  for (const size_t most : {kMebibyte - 1, kDirectBlock * 9, size_t{700'001}}) {
    WatchedDisk disk;
    disk.most_per_write = most;
    expect_written(disk, 13 * kMebibyte, kMebibyte);
  }
}

TEST_P(NewFileTest, FilesInTurnShareABuffer) {
  const std::vector<size_t> sizes{3 * kMebibyte + 17, kMebibyte, 2 * kMebibyte - 1};
  DirectBuffer buffer;
  std::vector<std::unique_ptr<NewFile>> files;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const fs::path path = folder_ / std::to_string(i);
    files.push_back(std::make_unique<NewFile>(posix_disk(), path, sizes[i], path.string(), &buffer));
    const std::string data(sizes[i], static_cast<char>('a' + i));
    files.back()->write(data.data(), data.size());
  }
  for (auto& file : files) file->flush();  // only now: what one wrote must not wait in the buffer of the next
  for (auto& file : files) file->finish();
  for (size_t i = 0; i < sizes.size(); ++i) {
    std::ifstream in(folder_ / std::to_string(i), std::ios::binary);
    const std::string found{std::istreambuf_iterator<char>(in), {}};
    EXPECT_TRUE(found == std::string(sizes[i], static_cast<char>('a' + i))) << sizes[i];
    fs::remove(folder_ / std::to_string(i));
  }
}

TEST_P(NewFileTest, OtherThanThePromisedLengthIsRefused) {
  const std::string data(5 * kMebibyte, 'x');
  for (const size_t bytes : {data.size() - 1, data.size() + 1}) {
    NewFile file(posix_disk(), folder_ / "file", bytes, "file");
    file.write(data.data(), data.size());
    EXPECT_THROW(file.flush(), IoError);
  }
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

INSTANTIATE_TEST_SUITE_P(Filesystems, NewFileTest, ::testing::Values("/tmp", "/dev/shm"),
                         [](const auto& which) { return which.index == 0 ? "disk" : "memory"; });

}  // namespace
}  // namespace limbeck::io
