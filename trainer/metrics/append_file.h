// A file that only grows, one whole record a write: what write() returned for is with the kernel, so killing the
// process loses nothing of it. A disk that is full for a while stops nobody: what could not be written is kept, fault()
// says so, and the next write brings it first. Opening throws IoError naming the file.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

namespace limbeck::metrics {

class AppendFile {
 public:
  explicit AppendFile(const std::filesystem::path& path);  // created when it is not there
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  void write(std::string_view record);
  const std::string& fault() const { return fault_; }  // why records wait in memory; "" when none do
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int descriptor_;
  std::string waiting_, fault_;
};

}  // namespace limbeck::metrics
