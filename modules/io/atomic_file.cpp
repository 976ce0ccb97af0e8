#include "modules/io/atomic_file.h"

#include <unistd.h>

#include <atomic>
#include <string>

#include "modules/errors.h"
#include "modules/io/file_identity.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;

fs::path temporary_name(const fs::path& path) {
  static std::atomic<uint64_t> counter{0};
  return folder_of(path) / (".tmp-" + path.filename().string() + "-" + std::to_string(::getpid()) + "-" +
                            std::to_string(counter.fetch_add(1)));
}

const fs::path& replaceable(const fs::path& path) {
  const std::string obstacle = obstacle_at(path);
  if (obstacle.empty()) return path;
  throw IoError(path.string() + ": is " + obstacle + ", wanted the name of a file, new or to be replaced");
}

}  // namespace

AtomicFile::AtomicFile(const fs::path& path, uint64_t bytes, Disk& disk)
    : disk_(disk), path_(replaceable(path)), file_(disk, temporary_name(path), bytes, path.string()) {}

void AtomicFile::commit() {
  file_.flush();
  file_.finish();
  if (const std::string obstacle = obstacle_at(path_); !obstacle.empty()) {  // since it was begun
    disk_.remove_file(file_.path());
    replaceable(path_);
  }
  if (const int error = disk_.rename(file_.path(), path_); error != 0) {
    disk_.remove_file(file_.path());
    file_.fail("cannot be put in place", error);
  }
  if (const int error = disk_.flush_folder(folder_of(path_)); error != 0) {
    file_.fail("its folder cannot be flushed to disk", error);
  }
}

void write_atomically(const fs::path& path, const std::string& text, Disk& disk) {
  AtomicFile file(path, text.size(), disk);
  file.write(text.data(), text.size());
  file.commit();
}

}  // namespace limbeck::io
