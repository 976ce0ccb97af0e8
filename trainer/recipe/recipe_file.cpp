#include "trainer/recipe/recipe_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "modules/errors.h"
#include "trainer/recipe/message.h"

namespace limbeck::recipe {
namespace {

constexpr size_t kLargestRecipe = 1 << 20;
constexpr size_t kLongestLine = 16 * 1024;
constexpr const char* kBlank = " \t";

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

bool is_key_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
}

bool is_key(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_key_character);
}

// The part of an unquoted line before a comment.
std::string without_comment(const std::string& text) {
  for (size_t at = text.find('#'); at != std::string::npos; at = text.find('#', at + 1)) {
    if (at == 0 || text[at - 1] == ' ' || text[at - 1] == '\t') return text.substr(0, at);
  }
  return text;
}

// The byte at which the text stops being UTF-8, or npos. Overlong forms, surrogates and values past U+10FFFF are
// refused.
size_t first_non_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) { return at < text.size() ? static_cast<unsigned char>(text[at]) : 0u; };
    const unsigned lead = byte(i), next = byte(i + 1);
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xC2 && lead < 0xE0 ? 2
                          : (lead & 0xF0) == 0xE0       ? 3
                          : lead >= 0xF0 && lead < 0xF5 ? 4
                                                        : 0;
    bool good = length > 0;
    for (size_t k = 1; good && k < length; ++k) good = (byte(i + k) & 0xC0) == 0x80;
    if ((lead == 0xE0 && next < 0xA0) || (lead == 0xED && next > 0x9F) || (lead == 0xF0 && next < 0x90) ||
        (lead == 0xF4 && next > 0x8F)) {
      good = false;
    }
    if (!good) return i;
    i += length;
  }
  return std::string::npos;
}

[[noreturn]] void refuse_missing(const std::filesystem::path& path) {
  std::vector<std::string> neighbours;
  std::error_code ignored;
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    if (entry.path().extension() == ".ini")
      neighbours.push_back((path.parent_path() / entry.path().filename()).string());
  }
  const std::string guess = did_you_mean(path.string(), neighbours);
  throw UsageError(fmt::format("{}: no such recipe; {}", shown(path.string()),
                               guess.empty() ? "name an .ini file, such as those in recipes/" : guess));
}

class Descriptor {  // closes itself
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

std::string read_text(const std::filesystem::path& path) {
  const std::string name = shown(path.string());
  // O_NONBLOCK: opening a FIFO must not wait for a writer before it can be refused.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) {
    if (errno == ENOENT || errno == ENOTDIR) refuse_missing(path);
    throw IoError(fmt::format("{}: cannot open the recipe: {}", name, std::strerror(errno)));
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw IoError(fmt::format("{}: {}", name, std::strerror(errno)));
  if (S_ISDIR(status.st_mode)) {
    throw UsageError(fmt::format("{}: is a folder, wanted a recipe file; name an .ini file in it", name));
  }
  if (!S_ISREG(status.st_mode)) throw UsageError(fmt::format("{}: is no regular file, wanted a recipe (.ini)", name));

  std::string text;
  char block[64 * 1024];
  while (text.size() <= kLargestRecipe) {
    const ssize_t got = ::read(file.get(), block, sizeof block);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw IoError(fmt::format("{}: cannot read the recipe: {}", name, std::strerror(errno)));
    if (got == 0) return text;
    text.append(block, static_cast<size_t>(got));
  }
  throw UsageError(fmt::format("{}: {} bytes, wanted a recipe of at most {}; is this the right file?", name,
                               static_cast<int64_t>(status.st_size), kLargestRecipe));
}

}  // namespace

RecipeFile RecipeFile::read(const std::filesystem::path& path) { return RecipeFile(read_text(path), path.string()); }

RecipeFile::RecipeFile(const std::string& text, std::string name) : name_(std::move(name)) {
  std::string section;
  size_t at = text.rfind("\xEF\xBB\xBF", 0) == 0 ? 3 : 0;
  for (int number = 1; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    parse_line(line, number, section);
    at = end + 1;
  }
  if (entries_.empty()) {
    throw UsageError(fmt::format(
        "{}: sets no key; a recipe needs at least `model = FOLDER` under [teacher] or [student]", shown(name_)));
  }
}

std::filesystem::path RecipeFile::folder() const {
  const auto parent = std::filesystem::path(name_).parent_path();
  return std::filesystem::absolute(parent.empty() ? "." : parent).lexically_normal();
}

void RecipeFile::refuse(int line, const std::string& message) const {
  throw UsageError(fmt::format("{}:{}: {}", shown(name_), line, message));
}

void RecipeFile::parse_line(const std::string& raw, int number, std::string& section) {
  if (raw.size() > kLongestLine)
    refuse(number, fmt::format("line of {} bytes, wanted at most {}", raw.size(), kLongestLine));
  if (const size_t bad = first_non_utf8(raw); bad != std::string::npos) {
    refuse(number, fmt::format("byte {} is not UTF-8; save the file as UTF-8 text", bad + 1));
  }
  for (const char c : raw) {
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7F) {
      refuse(number, fmt::format("control character \\x{:02x}, wanted plain text", static_cast<unsigned char>(c)));
    }
  }
  const std::string line = trimmed(raw);
  if (line.empty() || line[0] == '#' || line[0] == ';') return;
  if (line[0] == '[') {
    const std::string header = trimmed(without_comment(line));
    const std::string name = trimmed(header.substr(1, header.size() - 2));
    if (header.back() != ']' || !is_key(name)) {
      refuse(number, fmt::format("{} is no section, wanted [name], such as [student]", shown(header)));
    }
    section = name;
    sections_.push_back({name, number});
    return;
  }
  const size_t equals = line.find('=');
  const std::string key = trimmed(line.substr(0, equals));
  if (equals == std::string::npos || !is_key(key)) {
    refuse(number, fmt::format("`{}` is neither [section] nor key = value; a comment starts with #", shown(line)));
  }
  entries_.push_back(
      {section.empty() ? key : section + "." + key, parse_value(trimmed(line.substr(equals + 1)), number), number});
}

std::string RecipeFile::parse_value(const std::string& text, int line) const {
  if (text.empty() || text[0] != '"') return trimmed(without_comment(text));
  std::string value;
  size_t at = 1;
  for (; at < text.size() && text[at] != '"'; ++at) {
    if (text[at] != '\\') {
      value += text[at];
      continue;
    }
    ++at;
    if (at == text.size() || (text[at] != '"' && text[at] != '\\')) {
      refuse(line, "a backslash in quotes stands before \" or \\ only; write \\\\ for a backslash");
    }
    value += text[at];
  }
  if (at >= text.size()) refuse(line, fmt::format("the quote in {} is never closed; end it with \"", shown(text)));
  const std::string rest = trimmed(text.substr(at + 1));
  if (!rest.empty() && rest[0] != '#') {
    refuse(line, fmt::format("`{}` after the closing quote; put the whole value in quotes", shown(rest)));
  }
  return value;
}

std::string written_value(const std::string& value) {
  const bool plain = value == trimmed(value) && value == without_comment(value) && (value.empty() || value[0] != '"');
  if (plain) return value;
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

}  // namespace limbeck::recipe
