#include "modules/text/jinja/python_text.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "modules/text/characters/unicode.h"

namespace limbeck::text::jinja {
namespace {

bool in_set(char32_t character, const std::optional<std::u32string>& set) {
  return set ? set->find(character) != set->npos : is_space(character);
}

// The byte where the character before `end` begins.
size_t step_back(std::string_view text, size_t end) {
  do --end;
  while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

bool ends_line(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

std::string hex_escape(char32_t c) {
  if (c < 0x100) return fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
  if (c < 0x10000) return fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
  return fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
}

// Digits with single underscores between them, which are left out; none when there is anything else.
std::optional<std::string> without_underscores(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size(); ++at) {
    const auto is_word = [&](size_t i) { return i < text.size() && text[i] != '_' && text[i] != '.'; };
    if (text[at] != '_')
      out += text[at];
    else if (at == 0 || !is_word(at - 1) || !is_word(at + 1))
      return std::nullopt;
  }
  return out;
}

}  // namespace

bool is_space(char32_t c) { return is_in(CharacterSet::kWhitespace, c) || (c >= 0x1C && c <= 0x1F); }

bool is_printable(char32_t c) {
  switch (utf8proc_category(static_cast<int32_t>(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == U' ';
    default:
      return true;
  }
}

bool is_letter(char32_t c) {
  const auto category = utf8proc_category(static_cast<int32_t>(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

std::u32string characters(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) out += next_character(text, at);
  return out;
}

std::string from_characters(std::u32string_view characters) {
  std::string out;
  out.reserve(characters.size());
  for (const char32_t c : characters) append(out, c);
  return out;
}

std::string_view strip(std::string_view text, Side side, const std::optional<std::string>& set) {
  std::optional<std::u32string> wanted;
  if (set) wanted = characters(*set);
  size_t begin = 0, end = text.size();
  while (side != Side::kRight && begin < end) {
    size_t next = begin;
    if (!in_set(next_character(text, next), wanted)) break;
    begin = next;
  }
  while (side != Side::kLeft && begin < end) {
    const size_t last = step_back(text, end);
    size_t at = last;
    if (!in_set(next_character(text, at), wanted)) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

std::vector<std::string> split(std::string_view text, int64_t most) {
  std::vector<std::string> parts;
  for (std::string_view rest = strip(text, Side::kLeft); !rest.empty();) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.emplace_back(rest);
      break;
    }
    size_t at = 0, end = 0;
    while (at < rest.size() && !is_space(next_character(rest, at))) end = at;
    parts.emplace_back(rest.substr(0, end));
    rest = strip(rest.substr(end), Side::kLeft);
  }
  return parts;
}

std::vector<std::string> split_from_right(std::string_view text, int64_t most) {
  std::vector<std::string> parts;
  for (std::string_view rest = strip(text, Side::kRight); !rest.empty();) {
    if (most >= 0 && static_cast<int64_t>(parts.size()) == most) {
      parts.emplace_back(rest);
      break;
    }
    size_t begin = rest.size();
    while (begin > 0) {
      const size_t before = step_back(rest, begin);
      size_t at = before;
      if (is_space(next_character(rest, at))) break;
      begin = before;
    }
    parts.emplace_back(rest.substr(begin));
    rest = strip(rest.substr(0, begin), Side::kRight);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> split_at(std::string_view text, std::string_view separator, int64_t most) {
  std::vector<std::string> parts;
  while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
    const size_t found = text.find(separator);
    if (found == text.npos) break;
    parts.emplace_back(text.substr(0, found));
    text.remove_prefix(found + separator.size());
  }
  parts.emplace_back(text);
  return parts;
}

std::vector<std::string> split_at_from_right(std::string_view text, std::string_view separator, int64_t most) {
  std::vector<std::string> parts;
  while (most < 0 || static_cast<int64_t>(parts.size()) < most) {
    const size_t found = text.rfind(separator);
    if (found == text.npos) break;
    parts.emplace_back(text.substr(found + separator.size()));
    text = text.substr(0, found);
  }
  parts.emplace_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t here = at;
    const char32_t c = next_character(text, at);
    if (!ends_line(c)) continue;
    if (c == U'\r' && at < text.size() && text[at] == '\n') ++at;
    lines.emplace_back(text.substr(begin, (keep_ends ? at : here) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.emplace_back(text.substr(begin));
  return lines;
}

std::string replace(std::string_view text, std::string_view old, std::string_view with, int64_t most) {
  std::string out;
  size_t at = 0;
  for (int64_t done = 0; most < 0 || done < most; ++done) {
    if (old.empty()) {  // between all characters, and around them
      out += with;
      if (at == text.size()) return out;
      const size_t from = at;
      next_character(text, at);
      out += text.substr(from, at - from);
      continue;
    }
    const size_t found = text.find(old, at);
    if (found == text.npos) break;
    out += text.substr(at, found - at);
    out += with;
    at = found + old.size();
  }
  out += text.substr(at);
  return out;
}

std::string python_quoted(std::string_view text) {
  const char quote = text.find('\'') != text.npos && text.find('"') == text.npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_character(text, at);
    if (c == static_cast<char32_t>(quote) || c == U'\\') {
      out += '\\';
      append(out, c);
    } else if (c == U'\n') {
      out += "\\n";
    } else if (c == U'\r') {
      out += "\\r";
    } else if (c == U'\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      append(out, c);
    } else {
      out += hex_escape(c);
    }
  }
  return out + quote;
}

std::string shown(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", number);
  if (text.find_first_of(".e") == text.npos) text += ".0";
  return text;
}

std::optional<double> parse_float(std::string_view text) {
  const auto plain = without_underscores(strip(text, Side::kBoth));
  if (!plain || plain->empty()) return std::nullopt;
  std::string_view rest = *plain;
  const bool negative = rest[0] == '-';
  if (negative || rest[0] == '+') rest.remove_prefix(1);
  if (rest.empty() || rest[0] == '-' || rest[0] == '+') return std::nullopt;
  double number = 0;
  const auto [end, fault] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  if (end != rest.data() + rest.size() || rest.find('(') != rest.npos) return std::nullopt;
  if (fault == std::errc::invalid_argument) return std::nullopt;
  // Out of range comes back unset: zero or infinity, as the exponent says.
  if (fault == std::errc::result_out_of_range) number = rest.find("e-") != rest.npos ? 0 : INFINITY;
  return negative ? -number : number;
}

std::optional<int64_t> parse_integer(std::string_view text, int base, bool& too_big) {
  const auto plain = without_underscores(strip(text, Side::kBoth));
  too_big = false;
  if (!plain || plain->empty()) return std::nullopt;
  std::string_view rest = *plain;
  const bool negative = rest[0] == '-';
  if (negative || rest[0] == '+') rest.remove_prefix(1);
  const auto prefix = [&](char letter) { return rest.size() > 2 && rest[0] == '0' && (rest[1] | 0x20) == letter; };
  if ((base == 16 && prefix('x')) || (base == 8 && prefix('o')) || (base == 2 && prefix('b'))) rest.remove_prefix(2);
  if (rest.empty() || rest[0] == '-' || rest[0] == '+') return std::nullopt;
  const std::string digits = (negative ? "-" : "") + std::string(rest);
  int64_t number = 0;
  const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), number, base);
  if (end != digits.data() + digits.size() || fault == std::errc::invalid_argument) return std::nullopt;
  too_big = fault == std::errc::result_out_of_range;
  return number;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace limbeck::text::jinja
