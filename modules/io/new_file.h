// A file under construction: created under a name that nobody has, its space reserved before the first byte, every
// write checked, flushed to disk. Removed again unless finished. Failures throw IoError and are final: after a failed
// flush the kernel may have dropped the pages, and a second call would say all is well.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

#include "modules/io/disk.h"

namespace limbeck::io {

class NewFile {
 public:
  // bytes: the length it will have. shown: the name in messages.
  NewFile(Disk& disk, const std::filesystem::path& path, uint64_t bytes, std::string shown);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(const void* data, size_t bytes);
  void flush();   // after exactly the promised bytes
  void finish();  // after flush(): closes and keeps it

  const std::filesystem::path& path() const { return path_; }
  [[noreturn]] void fail(const char* doing, int error) const;

 private:
  void discard();

  Disk& disk_;
  std::filesystem::path path_;
  std::string shown_;
  uint64_t promised_, written_ = 0;
  int descriptor_ = -1;
};

// "; 900 bytes are needed, 12 are available" after an error that a full disk makes, else "".
std::string space_text(Disk& disk, const std::filesystem::path& folder, uint64_t needed, int error);

std::filesystem::path folder_of(const std::filesystem::path& path);  // "." for a bare name

}  // namespace limbeck::io
