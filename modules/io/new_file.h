// A file under construction: created under a name that nobody has, its space reserved before the first byte, every
// write checked, flushed to disk. Removed again unless finished. Failures throw IoError and are final: after a failed
// flush the kernel may have dropped the pages, and a second call would say all is well.
// A large file goes past the page cache where the filesystem can: gigabytes of checkpoint would push out what the
// training data sits in, and be copied by the kernel, page by page, before they are written.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "modules/io/disk.h"

namespace limbeck::io {

// What a large file is gathered in, for whole blocks at aligned places. A caller with many files to write, one after
// the other, keeps one: fresh memory for each is a page fault for each of its pages.
class DirectBuffer {
 public:
  static constexpr size_t kBytes = size_t{1} << 20;  // stays in a core's cache between the copy and the write
  char* data();                                      // made at the first call; null: there is no memory for it

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
};

class NewFile {
 public:
  // bytes: the length it will have. shown: the name in messages. buffer: in use from the first write() until the
  // promised bytes are there; must live as long.
  NewFile(Disk& disk, const std::filesystem::path& path, uint64_t bytes, std::string shown,
          DirectBuffer* buffer = nullptr);
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
  void put(const void* data, size_t bytes);
  void put_gathered();

  Disk& disk_;
  std::filesystem::path path_;
  std::string shown_;
  uint64_t promised_, written_ = 0;  // written: taken from the caller
  DirectBuffer own_;                 // when the caller gave none
  char* gathered_ = nullptr;         // for direct writes; none: each write goes straight to the cache
  size_t filled_ = 0;
  int descriptor_ = -1;
};

// "; 900 bytes are needed, 12 are available" after an error that a full disk makes, else "".
std::string space_text(Disk& disk, const std::filesystem::path& folder, uint64_t needed, int error);

std::filesystem::path folder_of(const std::filesystem::path& path);  // "." for a bare name

}  // namespace limbeck::io
