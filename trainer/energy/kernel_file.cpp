#include "trainer/energy/kernel_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace limbeck::energy {
namespace {

// At most what one number or word needs; errno where it is empty.
std::string begin_of(const std::filesystem::path& file) {
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return "";
  char text[128];
  const ssize_t bytes = ::read(descriptor, text, sizeof(text));
  const int error = bytes == 0 ? ENODATA : errno;
  ::close(descriptor);
  errno = error;
  return bytes > 0 ? std::string(text, static_cast<size_t>(bytes)) : "";
}

}  // namespace

std::optional<std::string> kernel_line(const std::filesystem::path& file) {
  const std::string text = begin_of(file);
  if (text.empty()) return std::nullopt;
  return text.substr(0, text.find('\n'));
}

Reading kernel_number(const std::filesystem::path& file) {
  const std::string text = begin_of(file);
  if (text.empty()) {
    const int error = errno;
    const bool denied = error == EACCES || error == EPERM;
    return {0, fmt::format("{} cannot be read ({}){}", file.string(), std::strerror(error),
                           denied ? ": root alone may, until it says chmod a+r" : "")};
  }
  const std::string line = text.substr(0, text.find('\n'));
  Reading reading;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), reading.microjoules);
  if (error == std::errc() && end == line.data() + line.size()) return reading;
  return {0, fmt::format("{} says \"{}\", wanted a whole number", file.string(), line)};
}

}  // namespace limbeck::energy
