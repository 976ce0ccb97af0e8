#include "modules/io/atomic_file.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "modules/errors.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostPerWrite = size_t{1} << 30;

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

fs::path temporary_name(const fs::path& path) {
  static std::atomic<uint64_t> counter{0};
  return folder_of(path) / (".tmp-" + path.filename().string() + "-" + std::to_string(::getpid()) + "-" +
                            std::to_string(counter.fetch_add(1)));
}

template <typename Call>
int without_interruption(Call call) {
  int result = 0;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& path, uint64_t bytes)
    : path_(path), temporary_(temporary_name(path)), promised_(bytes) {
  descriptor_ = without_interruption(
      [&] { return ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666); });
  if (descriptor_ < 0) fail("cannot be created", errno);
  try {
    reserve();
  } catch (...) {
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
    throw;
  }
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* doing, int error) const {
  std::string message = path_.string() + ": " + doing + ": " + std::strerror(error);
  struct statvfs info {};
  if ((error == ENOSPC || error == EDQUOT) && ::statvfs(folder_of(path_).c_str(), &info) == 0) {
    message += ": " + std::to_string(promised_) + " bytes are needed, " +
               std::to_string(static_cast<uint64_t>(info.f_bavail) * info.f_frsize) + " are available";
  }
  throw IoError(message);
}

void AtomicFile::reserve() {
  // Asked first, so that a hopeless save does not fill the disk for everyone else before it fails.
  struct statvfs info {};
  if (::statvfs(folder_of(path_).c_str(), &info) == 0) {
    const uint64_t available = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
    if (promised_ > available) fail("cannot be written", ENOSPC);
  }
  if (promised_ == 0) return;
  int error = EINTR;
  while (error == EINTR) error = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(promised_));
  // Some network filesystems reserve nothing; the checked writes below still see a full disk.
  if (error != 0 && error != EOPNOTSUPP && error != EINVAL) fail("space cannot be reserved", error);
}

void AtomicFile::write(const void* data, size_t bytes) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::write(descriptor_, at, std::min(bytes, kMostPerWrite));
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail("cannot be written", errno);
    if (done == 0) fail("cannot be written", ENOSPC);
    at += done;
    written_ += static_cast<uint64_t>(done);
    bytes -= static_cast<size_t>(done);
  }
}

void AtomicFile::commit() {
  if (written_ != promised_) {
    throw IoError(path_.string() + ": " + std::to_string(written_) + " bytes were written, " +
                  std::to_string(promised_) + " announced");
  }
  // A failed flush is final: the kernel may have dropped the pages, and a second call would say all is well.
  if (without_interruption([&] { return ::fsync(descriptor_); }) != 0) fail("cannot be flushed to disk", errno);
  if (::close(std::exchange(descriptor_, -1)) != 0 && errno != EINTR) fail("cannot be closed", errno);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be put in place", errno);
  temporary_.clear();
  const int folder =
      without_interruption([&] { return ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (folder < 0) fail("its folder cannot be opened to flush it", errno);
  const int flushed = without_interruption([&] { return ::fsync(folder); });
  const int error = errno;
  ::close(folder);
  // EINVAL: a filesystem without flushing of folders (some FUSE and network ones).
  if (flushed != 0 && error != EINVAL) fail("its folder cannot be flushed to disk", error);
}

}  // namespace limbeck::io
