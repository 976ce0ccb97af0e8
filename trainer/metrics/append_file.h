// A file that only grows, one whole record a write: what write() returned for is with the kernel, so killing the
// process loses nothing of it. Failures throw IoError naming the file.
#pragma once
#include <filesystem>
#include <string_view>

namespace limbeck::metrics {

class AppendFile {
 public:
  explicit AppendFile(const std::filesystem::path& path);  // created when it is not there
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  void write(std::string_view record);
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int descriptor_;
};

}  // namespace limbeck::metrics
