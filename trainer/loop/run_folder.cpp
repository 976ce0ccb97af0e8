#include "trainer/loop/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <iterator>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/folder_in_place.h"
#include "trainer/parallel/launch/topology.h"

namespace limbeck::loop {

namespace fs = std::filesystem;

namespace {

constexpr const char* kLock = ".lock";

int take_lock(const fs::path& path, const std::string& where) {
  const fs::path file = path / kLock;
  const int descriptor = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
  if (descriptor < 0 && errno == ELOOP) {
    throw IoError(
        fmt::format("{}: is a symbolic link, and a lock is a file of the run folder's own {}: remove it, or "
                    "name another folder with --run=DIR",
                    file.string(), where));
  }
  if (descriptor < 0) {
    throw IoError(fmt::format("{}: cannot write there ({}) {}: name another folder with --run=DIR", path.string(),
                              std::strerror(errno), where));
  }
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) {
    // Who holds it; the lock itself ends with the process, so a file that was left behind locks nothing.
    const std::string owner = parallel::this_process() + "\n";
    if (::ftruncate(descriptor, 0) != 0 || ::pwrite(descriptor, owner.data(), owner.size(), 0) < 0) {
      const int error = errno;
      ::close(descriptor);
      throw IoError(fmt::format("{}: cannot be written ({}) {}: make room, or name another folder with --run=DIR",
                                file.string(), std::strerror(error), where));
    }
    return descriptor;
  }
  char owner[320] = "";
  const ssize_t length = ::pread(descriptor, owner, sizeof(owner) - 1, 0);
  ::close(descriptor);
  const std::string who(owner, length > 0 ? static_cast<size_t>(length) : 0);
  throw UsageError(fmt::format(
      "{}: another limbeck process trains there ({}) {}: name another folder with --run=DIR, or wait for it",
      path.string(), who.substr(0, who.find('\n')), where));
}

// The folder and those above it that do not exist, the deepest first.
std::vector<fs::path> missing_folders(const fs::path& folder) {
  std::vector<fs::path> missing;
  std::error_code ignored;
  for (fs::path at = fs::absolute(folder).lexically_normal(); at.has_relative_path() && !fs::exists(at, ignored);
       at = at.parent_path()) {
    if (at.has_filename()) missing.push_back(at);
  }
  return missing;
}

}  // namespace

RunFolder::RunFolder(const recipe::Settings& settings, bool owner) : path_(settings.required_path("run")) {
  if (!owner) return;
  const std::string where = settings.where("run");
  std::error_code failure;
  made_ = missing_folders(path_);
  fs::create_directories(path_, failure);
  if (failure) {
    throw IoError(fmt::format("{}: cannot be made ({}) {}: name another folder with --run=DIR", path_.string(),
                              failure.message(), where));
  }
  lock_ = take_lock(path_, where);
  for (const char* name : kSavedModels) io::recover_folder(path_ / name);
}

RunFolder::~RunFolder() {
  if (lock_ < 0) return;
  std::error_code ignored;
  // A run that was refused before it wrote a word leaves none of the folders that were made for it.
  const auto entries = std::distance(fs::directory_iterator(path_, ignored), fs::directory_iterator());
  if (!made_.empty() && entries == 1 && fs::remove(path_ / kLock, ignored)) {
    for (const fs::path& folder : made_) {
      if (!fs::remove(folder, ignored)) break;
    }
  }
  ::close(lock_);
}

void RunFolder::write_text(const std::string& name, const std::string& text) const {
  io::write_atomically(path_ / name, text);
}

}  // namespace limbeck::loop
