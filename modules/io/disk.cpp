#include "modules/io/disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

namespace limbeck::io {
namespace {

constexpr size_t kMostPerWrite = size_t{1} << 30;  // Linux writes at most 2 GiB - 4 KiB at once

template <typename Call>
int without_interruption(Call call) {
  int result = 0;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

int errno_of(int result) { return result < 0 ? errno : 0; }

class PosixDisk : public Disk {
 public:
  int create(const Path& path, int& descriptor) override {
    descriptor = without_interruption(
        [&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666); });
    return errno_of(descriptor);
  }
  int reserve(int descriptor, uint64_t bytes) override {
    if (bytes == 0) return 0;
    int error = EINTR;
    while (error == EINTR) error = ::posix_fallocate(descriptor, 0, static_cast<off_t>(bytes));
    // Some network filesystems reserve nothing; checked writes still see a full disk.
    return error == EOPNOTSUPP || error == EINVAL ? 0 : error;
  }
  int set_direct(int descriptor, bool direct) override {
    const int flags = ::fcntl(descriptor, F_GETFL);
    if (flags < 0) return errno;
    return errno_of(::fcntl(descriptor, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT));
  }
  int write(int descriptor, const void* data, size_t bytes, size_t& written) override {
    ssize_t done = 0;
    do {
      done = ::write(descriptor, data, std::min(bytes, kMostPerWrite));
    } while (done < 0 && errno == EINTR);
    written = done < 0 ? 0 : static_cast<size_t>(done);
    return done < 0 ? errno : 0;
  }
  int flush(int descriptor) override {
    return errno_of(without_interruption([&] { return ::fsync(descriptor); }));
  }
  int close(int descriptor) override {
    // After EINTR the descriptor is gone all the same, and what mattered was flushed before.
    const int error = errno_of(::close(descriptor));
    return error == EINTR ? 0 : error;
  }
  int rename(const Path& from, const Path& to) override { return errno_of(std::rename(from.c_str(), to.c_str())); }
  int exchange(const Path& one, const Path& other) override {
    return errno_of(::renameat2(AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), RENAME_EXCHANGE));
  }
  int make_folder(const Path& path) override { return errno_of(::mkdir(path.c_str(), 0777)); }
  int remove_file(const Path& path) override { return errno_of(::unlink(path.c_str())); }
  int remove_folder(const Path& path) override { return errno_of(::rmdir(path.c_str())); }
  int flush_folder(const Path& path) override {
    const int folder = without_interruption([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
    if (folder < 0) return errno;
    const int error = flush(folder);
    ::close(folder);
    // EINVAL: a filesystem without flushing of folders (some FUSE and network ones).
    return error == EINVAL ? 0 : error;
  }
  int free_bytes(const Path& path, uint64_t& bytes) override {
    struct statvfs info {};
    const int error = errno_of(without_interruption([&] { return ::statvfs(path.c_str(), &info); }));
    bytes = error != 0 ? 0 : static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
    return error;
  }
};

}  // namespace

Disk& posix_disk() {
  static PosixDisk disk;
  return disk;
}

}  // namespace limbeck::io
