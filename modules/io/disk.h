// The calls that change a disk, each as one virtual function: the one place where a test can count them, record them or
// make one of them fail. Every function gives 0 or the errno; none throws. Reading goes through InputFile.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace limbeck::io {

class Disk {
 public:
  using Path = std::filesystem::path;
  virtual ~Disk() = default;

  virtual int create(const Path& path, int& descriptor) = 0;  // for writing; EEXIST when something is there
  virtual int reserve(int descriptor, uint64_t bytes) = 0;    // 0 where the filesystem cannot reserve
  // Whether writes go from memory to the disk itself; then memory, length and place are multiples of kDirectBlock.
  // EINVAL where the filesystem cannot.
  virtual int set_direct(int descriptor, bool direct) = 0;
  virtual int write(int descriptor, const void* data, size_t bytes, size_t& written) = 0;  // may write less
  virtual int flush(int descriptor) = 0;
  virtual int close(int descriptor) = 0;
  virtual int rename(const Path& from, const Path& to) = 0;
  virtual int exchange(const Path& one, const Path& other) = 0;  // at once; EINVAL or ENOSYS where nothing can
  virtual int make_folder(const Path& path) = 0;
  virtual int remove_file(const Path& path) = 0;
  virtual int remove_folder(const Path& path) = 0;  // an empty one
  virtual int flush_folder(const Path& path) = 0;   // its list of names, not what the files hold
  virtual int free_bytes(const Path& path, uint64_t& bytes) = 0;
};

inline constexpr size_t kDirectBlock = 4096;

// The real one. Has no state: any thread.
Disk& posix_disk();

}  // namespace limbeck::io
