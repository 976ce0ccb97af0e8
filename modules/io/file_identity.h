// Which file a path is, whatever it is called, and what may be replaced: a rename over a device or a FIFO would put a
// regular file in its place, as root for the whole machine.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace limbeck::io {

struct FileIdentity {
  uint64_t device = 0, inode = 0;
  bool operator==(const FileIdentity&) const = default;
};

// Through links, symbolic and hard; nothing where there is no such file.
std::optional<FileIdentity> identity_of(const std::filesystem::path& path);

// "a folder", "a FIFO" ...: what st_mode says of something that is no regular file.
std::string kind_of(uint32_t mode);

// What stands at `path`, through links, and is no regular file; "" where one is, or nothing.
std::string obstacle_at(const std::filesystem::path& path);

}  // namespace limbeck::io
