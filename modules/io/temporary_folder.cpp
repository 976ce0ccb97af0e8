#include "modules/io/temporary_folder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <system_error>

#include "modules/errors.h"
#include "modules/io/folder_in_place.h"

namespace limbeck::io {

namespace fs = std::filesystem;

TemporaryFolder::TemporaryFolder(const fs::path& target) : target_(target) {
  static std::atomic<uint64_t> counter{0};
  const fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
  std::error_code error;
  fs::create_directories(parent, error);
  for (bool made = false; !made && !error;) {  // never one that is there: what it holds is not ours
    path_ = parent / fmt::format(".tmp-{}-{}-{}", target.filename().string(), ::getpid(), counter.fetch_add(1));
    made = fs::create_directory(path_, error);
  }
  if (error) throw IoError(path_.string() + ": cannot be created: " + error.message());
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

void TemporaryFolder::put_in_place() {
  put_folder_in_place(path_, target_);
  path_.clear();
}

}  // namespace limbeck::io
