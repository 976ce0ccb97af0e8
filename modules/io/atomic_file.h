// A file that appears under its name complete and on disk, or not at all: written beside the target under a temporary
// name, flushed, renamed, and the rename flushed. Space is reserved before the first byte. Failures throw IoError and
// leave the old file, if any, untouched; the temporary is removed.
#pragma once
#include <cstdint>
#include <filesystem>

namespace limbeck::io {

class AtomicFile {
 public:
  AtomicFile(const std::filesystem::path& path, uint64_t bytes);  // bytes: the length it will have
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  void commit();  // once, after exactly the promised bytes

 private:
  void reserve();
  [[noreturn]] void fail(const char* doing, int error) const;

  std::filesystem::path path_, temporary_;
  uint64_t promised_, written_ = 0;
  int descriptor_ = -1;
};

}  // namespace limbeck::io
