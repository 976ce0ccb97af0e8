#include "modules/io/folder_in_place.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "modules/errors.h"
#include "modules/io/new_file.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;

fs::path aside_of(const fs::path& target) {
  return folder_of(target) / fmt::format(".{}.old", target.filename().string());
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
}

void must(int error, const fs::path& path, const char* doing) {
  if (error != 0) throw IoError(path.string() + ": " + doing + ": " + std::strerror(error));
}

// What stays behind is in nobody's way: its name is taken by the next save, which removes it first.
void remove_if_possible(const fs::path& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

}  // namespace

void put_folder_in_place(const fs::path& fresh, const fs::path& target, Disk& disk) {
  constexpr const char* kPlacing = "cannot be put in place";
  const fs::path parent = folder_of(target), aside = aside_of(target);
  must(disk.flush_folder(fresh), fresh, "cannot be flushed to disk");
  if (!is_there(target)) {
    must(disk.rename(fresh, target), target, kPlacing);
    return must(disk.flush_folder(parent), target, "cannot be flushed to disk in its place");
  }
  const int error = disk.exchange(fresh, target);
  if (error == EINVAL || error == ENOSYS || error == EOPNOTSUPP) {
    remove_if_possible(aside);
    must(disk.rename(target, aside), target, kPlacing);
    if (const int failed = disk.rename(fresh, target); failed != 0) {
      disk.rename(aside, target);
      must(failed, target, kPlacing);
    }
  } else {
    must(error, target, kPlacing);
  }
  must(disk.flush_folder(parent), target, "cannot be flushed to disk in its place");
  remove_if_possible(error == 0 ? fresh : aside);
}

void recover_folder(const fs::path& target, Disk& disk) {
  const fs::path aside = aside_of(target);
  if (!is_there(aside)) return;
  if (is_there(target)) return remove_if_possible(aside);
  must(disk.rename(aside, target), target, "cannot be put back in place");
  must(disk.flush_folder(folder_of(target)), folder_of(target), "cannot be flushed to disk");
}

}  // namespace limbeck::io
