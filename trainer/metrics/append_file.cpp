#include "trainer/metrics/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "modules/errors.h"

namespace limbeck::metrics {

AppendFile::AppendFile(const std::filesystem::path& path)
    : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) {
    throw IoError(path_.string() + ": cannot be opened for appending: " + std::strerror(errno) +
                  "; choose another folder with --run=DIR");
  }
}

AppendFile::~AppendFile() {
  if (!waiting_.empty()) write({});
  ::close(descriptor_);
}

void AppendFile::write(std::string_view record) {
  // Nearly always nothing waits, and the record goes out without a copy.
  if (!waiting_.empty()) {
    waiting_ += record;
    record = waiting_;
  }
  fault_.clear();
  while (!record.empty() && fault_.empty()) {
    const ssize_t done = ::write(descriptor_, record.data(), record.size());
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      fault_ = path_.string() + ": cannot be written: " + std::strerror(done == 0 ? ENOSPC : errno) +
               "; its lines wait in memory: make room";
    } else {
      record.remove_prefix(static_cast<size_t>(done));
    }
  }
  waiting_ = std::string(record);
}

}  // namespace limbeck::metrics
