// A file that appears under its name complete and on disk, or not at all: written beside the target under a temporary
// name, flushed, renamed, and the rename flushed. What is no regular file is not replaced. Space is reserved before the
// first byte. Failures throw IoError and leave the old file, if any, untouched; the temporary is removed.
#pragma once
#include <cstdint>
#include <filesystem>

#include "modules/io/new_file.h"

namespace limbeck::io {

class AtomicFile {
 public:
  AtomicFile(const std::filesystem::path& path, uint64_t bytes,
             Disk& disk = posix_disk());  // bytes: the length it will have

  void write(const void* data, size_t bytes) { file_.write(data, bytes); }
  void commit();  // once, after exactly the promised bytes

 private:
  Disk& disk_;
  std::filesystem::path path_;
  NewFile file_;
};

// A whole small file at once.
void write_atomically(const std::filesystem::path& path, const std::string& text, Disk& disk = posix_disk());

}  // namespace limbeck::io
