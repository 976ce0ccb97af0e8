// A folder under construction beside the one that it is to become; removed with all it holds unless it was put in
// place.
#pragma once
#include <filesystem>

namespace limbeck::io {

class TemporaryFolder {
 public:
  // IoError where it cannot be created; folders above the target are made.
  explicit TemporaryFolder(const std::filesystem::path& target);
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  void put_in_place();

 private:
  std::filesystem::path target_, path_;
};

}  // namespace limbeck::io
