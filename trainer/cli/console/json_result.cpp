#include "trainer/cli/console/json_result.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <string_view>

#include "modules/errors.h"
#include "modules/io/file_identity.h"
#include "trainer/recipe/message.h"

namespace limbeck::cli {
namespace {

[[noreturn]] void refuse(const std::string& target, const std::string& reason) {
  throw IoError(fmt::format("--json={}: cannot write the result: {}; name a file in a folder you can write to",
                            recipe::shown(target), reason));
}

void write_all(int fd, const std::string& text, const std::string& target) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t put = ::write(fd, text.data() + at, text.size() - at);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) refuse(target, std::strerror(errno));
    at += static_cast<size_t>(put);
  }
}

// A rename over a device would put a file in its place: /dev/null, as root, for the whole machine.
void refuse_what_is_no_file(const std::string& target) {
  const std::string obstacle = io::obstacle_at(target);
  if (obstacle == "a folder") refuse(target, "it is a folder");
  if (!obstacle.empty()) refuse(target, "it is no regular file (standard output is --json=-)");
}

// Removes itself unless it became the target. Every way to write goes through here, and so through the refusal.
class Temporary {
 public:
  explicit Temporary(const std::string& target) : path_(fmt::format("{}.tmp.{}", target, ::getpid())) {
    refuse_what_is_no_file(target);
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0) refuse(target, std::strerror(errno));
  }
  ~Temporary() {
    if (fd_ >= 0) ::close(fd_);
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  void commit(const std::string& text, const std::string& target) {
    write_all(fd_, text, target);
    if (::fsync(fd_) != 0) refuse(target, std::strerror(errno));
    if (::rename(path_.c_str(), target.c_str()) != 0) refuse(target, std::strerror(errno));
    path_.clear();
  }

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace

bool is_json_result(const std::string& path) {
  constexpr std::string_view kBegins = "{\n  \"command\":";
  std::ifstream file(path, std::ios::binary);
  std::string begins(kBegins.size(), '\0');
  return file.read(begins.data(), static_cast<std::streamsize>(begins.size())) && begins == kBegins;
}

void check_json_target(const std::string& target) {
  if (target == "-") return;
  const Temporary probe(target);
}

void write_json_result(const std::string& target, const nlohmann::ordered_json& result) {
  const std::string text = result.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  if (target == "-") {
    std::cout << text << std::flush;
    return;
  }
  Temporary(target).commit(text, target);
}

nlohmann::ordered_json settings_as_json(const recipe::Settings& settings) {
  auto out = nlohmann::ordered_json::object();
  for (const recipe::Option& option : settings.table().options()) {
    if (option.kind == recipe::OptionKind::kList) {
      auto list = nlohmann::ordered_json::array();
      for (const auto& value : settings.values(option.name)) {
        list.push_back({{"value", value.text}, {"from", value.origin.to_string()}});
      }
      out[option.name] = list;
    } else if (!settings.text(option.name).empty()) {
      out[option.name] = {{"value", settings.text(option.name)}, {"from", settings.origin(option.name).to_string()}};
    }
  }
  return out;
}

}  // namespace limbeck::cli
