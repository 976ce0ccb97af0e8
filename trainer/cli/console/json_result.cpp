#include "trainer/cli/console/json_result.h"

#include <fmt/format.h>

#include <fstream>
#include <functional>
#include <iostream>
#include <string_view>

#include "modules/errors.h"
#include "modules/io/atomic_file.h"
#include "modules/io/file_identity.h"
#include "trainer/recipe/message.h"

namespace limbeck::cli {
namespace {

[[noreturn]] void refuse(const std::string& target, const std::string& reason) {
  throw IoError(fmt::format("--json={}: cannot write the result: {}; name a file in a folder you can write to",
                            recipe::shown(target), reason));
}

// Every way to write goes through here, and so through the refusal: a rename over a device would put a file in its
// place, /dev/null, as root, for the whole machine.
void at_target(const std::string& target, const std::function<void()>& write) {
  const std::string obstacle = io::obstacle_at(target);
  if (obstacle == "a folder") refuse(target, "it is a folder");
  if (!obstacle.empty()) refuse(target, "it is no regular file (standard output is --json=-)");
  try {
    write();
  } catch (const IoError& error) {
    const std::string reason = error.what(), named = target + ": ";
    refuse(target, reason.starts_with(named) ? reason.substr(named.size()) : reason);
  }
}

}  // namespace

bool is_json_result(const std::string& path) {
  constexpr std::string_view kBegins = "{\n  \"command\":";
  std::ifstream file(path, std::ios::binary);
  std::string begins(kBegins.size(), '\0');
  return file.read(begins.data(), static_cast<std::streamsize>(begins.size())) && begins == kBegins;
}

void check_json_target(const std::string& target) {
  if (target == "-") return;
  at_target(target, [&] { const io::AtomicFile made_and_removed(target, 1); });
}

void write_json_result(const std::string& target, const nlohmann::ordered_json& result) {
  const std::string text = result.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  if (target == "-") {
    std::cout << text << std::flush;
    return;
  }
  at_target(target, [&] { io::write_atomically(target, text); });
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
