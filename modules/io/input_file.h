// An untrusted file open for reading: a regular file, reached without following a link, read with pread into memory of
// ours and never mapped (a mapped file that is cut short kills the process with SIGBUS).
//
// One kind of link is accepted, the one Hugging Face's cache is made of:
// <repository>/snapshots/<revision>/[folders/]NAME pointing to ../../blobs/<40 or 64 hex digits> of the same
// repository. The folder itself may be reached by any path.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

namespace limbeck::io {

class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const { return size_; }                             // when it was opened
  void read(uint64_t offset, void* destination, size_t bytes) const;  // all of it or an error; any thread
  std::string whole() const;                                          // every byte; the caller looks at size() first
  void check_size() const;                                            // throws when the file has changed its length

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

}  // namespace limbeck::io
