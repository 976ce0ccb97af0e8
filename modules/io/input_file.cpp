#include "modules/io/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "modules/errors.h"
#include "modules/io/file_identity.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;

constexpr int kFileFlags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
constexpr int kFolderFlags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
constexpr size_t kMostPerRead = size_t{1} << 30;  // Linux reads at most 2 GiB - 4 KiB at once

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return number_; }
  int release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

// Absent is the model's fault (4); a file that is there and cannot be had is the machine's (6).
[[noreturn]] void fail_open(const fs::path& path, int error) {
  if (error == ENOENT || error == ENOTDIR) throw WeightsError(path.string() + ": no such file");
  throw IoError(path.string() + ": cannot be opened: " + std::strerror(error) +
                (error == EMFILE ? ": raise the limit (ulimit -n)" : ""));
}

[[noreturn]] void refuse_kind(const fs::path& path, mode_t mode) {
  throw WeightsError(path.string() + ": is " + kind_of(mode) + ", wanted a regular file");
}

int open_in(int folder, const std::string& name, const fs::path& path) {
  struct stat info {};
  // Looked at before it is opened, because opening a device can have effects; and again after, against an exchange.
  if (::fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) fail_open(path, errno);
  if (!S_ISREG(info.st_mode)) refuse_kind(path, info.st_mode);
  int number = -1;
  do {
    number = ::openat(folder, name.c_str(), kFileFlags);
  } while (number < 0 && errno == EINTR);
  if (number < 0) fail_open(path, errno);
  Descriptor file(number);
  if (::fstat(file.get(), &info) != 0) fail_open(path, errno);
  if (!S_ISREG(info.st_mode)) refuse_kind(path, info.st_mode);
  return file.release();
}

struct CacheLink {
  std::string blobs_folder;  // "../../blobs"
  std::string blob;
};

std::optional<CacheLink> cache_link(const fs::path& folder, const std::string& target) {
  const size_t slash = target.rfind('/');
  if (slash == target.npos) return std::nullopt;
  CacheLink link{target.substr(0, slash), target.substr(slash + 1)};
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if ((link.blob.size() != 40 && link.blob.size() != 64) || !std::all_of(link.blob.begin(), link.blob.end(), is_hex)) {
    return std::nullopt;
  }
  fs::path above = fs::canonical(folder);
  std::string expected = "../../blobs";
  for (int depth = 0; depth < 3; ++depth, expected = "../" + expected) {
    above = above.parent_path();
    if (above.filename() == "snapshots") {
      if (link.blobs_folder == expected) return link;
      return std::nullopt;
    }
  }
  return std::nullopt;
}

int open_regular(const fs::path& path) {
  const std::string name = path.filename().string();
  if (name.empty() || name == "." || name == "..") refuse_kind(path, S_IFDIR);
  const fs::path folder_path = path.has_parent_path() ? path.parent_path() : fs::path(".");
  Descriptor folder(::open(folder_path.c_str(), kFolderFlags));
  if (folder.get() < 0) fail_open(path, errno);
  struct stat info {};
  if (::fstatat(folder.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) fail_open(path, errno);
  if (!S_ISLNK(info.st_mode)) return open_in(folder.get(), name, path);

  char target[4096];
  const ssize_t length = ::readlinkat(folder.get(), name.c_str(), target, sizeof(target));
  if (length < 0) fail_open(path, errno);
  const auto link = cache_link(folder_path, std::string(target, static_cast<size_t>(length)));
  if (!link) {
    throw WeightsError(path.string() +
                       ": is a symbolic link, and only the links of a Hugging Face cache (snapshots/*/NAME to "
                       "../../blobs/HASH) are followed: name the real folder, or copy the file into this one");
  }
  Descriptor blobs(::openat(folder.get(), link->blobs_folder.c_str(), kFolderFlags | O_NOFOLLOW));
  if (blobs.get() < 0) fail_open(path, errno);
  return open_in(blobs.get(), link->blob, path);
}

uint64_t size_of(int descriptor, const fs::path& path) {
  struct stat info {};
  if (::fstat(descriptor, &info) != 0) throw IoError(path.string() + ": cannot be examined: " + std::strerror(errno));
  return static_cast<uint64_t>(info.st_size);
}

}  // namespace

InputFile::InputFile(const fs::path& path) : path_(path) {
  Descriptor file(open_regular(path));
  size_ = size_of(file.get(), path);
  descriptor_ = file.release();
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  return *this;
}

void InputFile::read(uint64_t offset, void* destination, size_t bytes) const {
  auto* at = static_cast<char*>(destination);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor_, at, std::min(bytes, kMostPerRead), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw IoError(path_.string() + ": cannot be read at byte " + std::to_string(offset) + ": " +
                    std::strerror(errno));
    }
    if (got == 0) {
      throw WeightsError(path_.string() + ": ends at byte " + std::to_string(offset) + ", it had " +
                         std::to_string(size_) + " bytes when it was opened");
    }
    at += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
}

std::string InputFile::whole() const {
  std::string bytes(size_, '\0');
  read(0, bytes.data(), bytes.size());
  return bytes;
}

void InputFile::check_size() const {
  const uint64_t now = size_of(descriptor_, path_);
  if (now != size_) {
    throw WeightsError(path_.string() + ": changed from " + std::to_string(size_) + " to " + std::to_string(now) +
                       " bytes while it was read");
  }
}

}  // namespace limbeck::io
