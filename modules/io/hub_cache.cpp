#include "modules/io/hub_cache.h"

#include <algorithm>
#include <cstdlib>

#include "modules/errors.h"
#include "modules/io/input_file.h"
#include "modules/io/tensor_name.h"

namespace limbeck::io {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostRefBytes = 128;
constexpr size_t kMostNameBytes = 96;  // the hub's own limit

bool is_name_part(const std::string& text) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  };
  return !text.empty() && text.size() <= kMostNameBytes && text.front() != '.' && text.front() != '-' &&
         text.find("..") == text.npos && std::all_of(text.begin(), text.end(), allowed);
}

bool is_revision(const std::string& text) {
  size_t begin = 0;
  while (true) {
    const size_t slash = text.find('/', begin);
    if (!is_name_part(text.substr(begin, slash == text.npos ? slash : slash - begin))) return false;
    if (slash == text.npos) return true;
    begin = slash + 1;
  }
}

bool is_commit(const std::string& text) {
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.size() == 40 && std::all_of(text.begin(), text.end(), is_hex);
}

fs::path environment_folder(const char* variable) {
  const char* value = std::getenv(variable);
  return value == nullptr ? fs::path() : fs::path(value);
}

bool is_own_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() == fs::file_type::directory;
}

fs::path repository_folder(const HubName& name) {
  return hub_cache_folder() / ("models--" + name.organisation + "--" + name.name);
}

// The commit a branch or tag stood at when it was downloaded; "" when it was not.
std::string read_ref(const fs::path& path) {
  std::error_code ignored;
  if (fs::symlink_status(path, ignored).type() == fs::file_type::not_found) return "";
  const InputFile file(path);
  std::string text(std::min<uint64_t>(file.size(), kMostRefBytes), '\0');
  file.read(0, text.data(), text.size());
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  if (is_commit(text)) return text;
  throw WeightsError(path.string() + ": holds " + in_quotes(text) +
                     ", wanted the 40 hexadecimal digits of a commit: download the model again, or name its folder");
}

}  // namespace

std::optional<HubName> parse_hub_name(const std::string& text) {
  const size_t at = text.find('@'), slash = text.find('/');
  if (slash == text.npos || slash > at) return std::nullopt;
  HubName name{text.substr(0, slash), text.substr(slash + 1, at == text.npos ? at : at - slash - 1),
               at == text.npos ? "main" : text.substr(at + 1)};
  if (!is_name_part(name.organisation) || !is_name_part(name.name) || !is_revision(name.revision)) return std::nullopt;
  return name;
}

fs::path hub_cache_folder() {
  if (const fs::path hub = environment_folder("HF_HUB_CACHE"); !hub.empty()) return hub;
  if (const fs::path home = environment_folder("HF_HOME"); !home.empty()) return home / "hub";
  if (const fs::path caches = environment_folder("XDG_CACHE_HOME"); !caches.empty()) {
    return caches / "huggingface" / "hub";
  }
  return environment_folder("HOME") / ".cache" / "huggingface" / "hub";
}

std::optional<fs::path> find_snapshot(const HubName& name) {
  const fs::path repository = repository_folder(name);
  std::string commit = read_ref(repository / "refs" / name.revision);
  if (commit.empty()) commit = name.revision;
  if (!is_commit(commit)) return std::nullopt;
  const fs::path snapshots = repository / "snapshots", found = snapshots / commit;
  std::error_code ignored;
  if (fs::symlink_status(found, ignored).type() == fs::file_type::not_found) return std::nullopt;
  for (const fs::path& folder : {snapshots, found}) {
    if (!is_own_folder(folder)) {
      throw WeightsError(folder.string() +
                         ": is no folder of the cache's own (a link or a file), wanted a snapshot of " +
                         name.organisation + "/" + name.name + ": download it again, or name its folder");
    }
  }
  return fs::absolute(found).lexically_normal();
}

std::string absent_snapshot(const HubName& name, const fs::path& local) {
  const std::string model = name.organisation + "/" + name.name;
  const std::string flag = name.revision == "main" ? "" : " --revision " + name.revision;
  return in_quotes(model) + ": no folder " + local.string() + ", and no snapshot of revision " + name.revision +
         " in " + repository_folder(name).string() + ": name a folder, or type: hf download " + model + flag;
}

}  // namespace limbeck::io
