#include "trainer/metrics/append_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "modules/errors.h"

namespace limbeck::metrics {

AppendFile::AppendFile(const std::filesystem::path& path)
    : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  if (descriptor_ < 0) {
    throw IoError(path_.string() + ": cannot be opened for appending: " + std::strerror(errno) +
                  "; choose another folder with --run=DIR");
  }
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::write(std::string_view record) {
  while (!record.empty()) {
    const ssize_t done = ::write(descriptor_, record.data(), record.size());
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      throw IoError(path_.string() + ": cannot be written: " + std::strerror(done == 0 ? ENOSPC : errno) +
                    "; make room, then go on with --resume=auto");
    }
    record.remove_prefix(static_cast<size_t>(done));
  }
}

}  // namespace limbeck::metrics
