// A finished folder takes the place of an older one so that a kill at any instant leaves one of the two there, whole.
// Where the filesystem can, the two exchange their names at once. Where it cannot (some network ones), the older one
// waits beside as .NAME.old for the one instant in which neither is there, and recover_folder() puts it back.
#pragma once
#include <filesystem>

#include "modules/io/disk.h"

namespace limbeck::io {

// IoError leaves the older folder in place. What was there before is removed.
void put_folder_in_place(const std::filesystem::path& fresh, const std::filesystem::path& target,
                         Disk& disk = posix_disk());
// To be called before anybody looks for the target, by the one process that writes it.
void recover_folder(const std::filesystem::path& target, Disk& disk = posix_disk());

}  // namespace limbeck::io
