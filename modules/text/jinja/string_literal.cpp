#include "modules/text/jinja/string_literal.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "modules/text/characters/unicode.h"

namespace limbeck::text::jinja {
namespace {

// Jinja writes what is not ASCII as escapes before it resolves all of them: a backslash before such a character makes
// an escaped backslash, and the escape stays as it is.
std::string ascii_only(std::string_view literal) {
  std::string out;
  for (size_t at = 0; at < literal.size();) {
    const char32_t c = next_character(literal, at);
    if (c < 0x80)
      out += static_cast<char>(c);
    else if (c < 0x100)
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    else if (c < 0x10000)
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    else
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
  }
  return out;
}

class Resolver {
 public:
  Resolver(const Work& work, std::string_view text) : work_(work), text_(text) {}

  std::string run() {
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c != '\\')
        out_ += c;
      else if (at_ == text_.size())
        work_.refuse("a text ends in a backslash");
      else
        escape(text_[at_++]);
    }
    return std::move(out_);
  }

 private:
  void escape(char c) {
    static constexpr std::string_view kLetters = "abfnrtv", kMeant = "\a\b\f\n\r\t\v";
    const size_t letter = kLetters.find(c);
    if (letter != kLetters.npos)
      out_ += kMeant[letter];
    else if (c == '\\' || c == '\'' || c == '"')
      out_ += c;
    else if (c == 'x')
      character(2, 16);
    else if (c == 'u')
      character(4, 16);
    else if (c == 'U')
      character(8, 16);
    else if (c >= '0' && c <= '7')
      octal();
    else if (c == 'N')
      work_.refuse_unsupported("a character by its name (\\N{...})");
    else if (c != '\n')
      out_ += {'\\', c};
  }
  void octal() {
    --at_;
    size_t digits = 0;
    while (digits < 3 && at_ + digits < text_.size() && text_[at_ + digits] >= '0' && text_[at_ + digits] <= '7')
      ++digits;
    character(digits, 8);
  }
  void character(size_t digits, int base) {
    const std::string_view part = text_.substr(at_, digits);
    uint32_t code = 0;
    const auto [end, fault] = std::from_chars(part.data(), part.data() + part.size(), code, base);
    if (part.size() != digits || fault != std::errc() || end != part.data() + part.size())
      work_.refuse(fmt::format("an escape within a text lacks digits, wanted {}", digits));
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      work_.refuse(fmt::format("an escape within a text names U+{:04X}, which is no character", code));
    append(out_, code);
    at_ += digits;
  }

  const Work& work_;
  std::string_view text_;
  std::string out_;
  size_t at_ = 0;
};

}  // namespace

std::string unescaped(const Work& work, std::string_view literal) {
  const std::string plain = ascii_only(literal);
  return Resolver(work, plain).run();
}

}  // namespace limbeck::text::jinja
