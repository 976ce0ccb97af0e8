#include "trainer/recipe/message.h"

#include <fmt/format.h>

#include "modules/nearest_name.h"

namespace limbeck::recipe {
namespace {

constexpr size_t kLongestShown = 120;

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Cut between UTF-8 characters, never inside one.
std::string shortened(const std::string& text) {
  if (text.size() <= kLongestShown) return text;
  size_t head = kLongestShown / 2, tail = text.size() - kLongestShown / 4;
  while (head > 0 && is_continuation(text[head])) --head;
  while (tail < text.size() && is_continuation(text[tail])) ++tail;
  return fmt::format("{}...{} ({} bytes)", text.substr(0, head), text.substr(tail), text.size());
}

}  // namespace

std::string shown(const std::string& text) {
  std::string out;
  for (const char c : shortened(text)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

std::string did_you_mean(const std::string& wanted, const std::vector<std::string>& known) {
  return offer_nearest(wanted, known, 1, {.before = "did you mean ", .behind = "?"});
}

std::string any_of(const std::vector<std::string>& words) {
  std::string out;
  for (size_t i = 0; i < words.size(); ++i) {
    if (i > 0) out += i + 1 == words.size() ? " or " : ", ";
    out += words[i];
  }
  return out;
}

std::string wanted_of(const std::string& given, const std::vector<std::string>& words) {
  return offer_nearest(given, words, 1, {.before = "did you mean ", .behind = "? "}) + "wanted " + any_of(words);
}

}  // namespace limbeck::recipe
