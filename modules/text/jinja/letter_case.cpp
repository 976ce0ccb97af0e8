// Python's str.upper, lower, title and capitalize.
#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "modules/text/characters/unicode.h"
#include "modules/text/jinja/python_text.h"

namespace limbeck::text::jinja {
namespace {

struct FullCase {
  uint32_t from;
  const char* to;
};
struct CaseRange {
  uint32_t first, last;
};

#include "modules/text/jinja/case_tables.inc"

template <size_t kCount>
const char* longer_case(const FullCase (&table)[kCount], char32_t character) {
  const auto* found = std::lower_bound(std::begin(table), std::end(table), character,
                                       [](const FullCase& entry, char32_t c) { return entry.from < c; });
  return found != std::end(table) && found->from == character ? found->to : nullptr;
}

template <size_t kCount>
bool within(const CaseRange (&ranges)[kCount], char32_t character) {
  const auto* found = std::upper_bound(std::begin(ranges), std::end(ranges), character,
                                       [](char32_t c, const CaseRange& range) { return c < range.first; });
  return found != std::begin(ranges) && character <= std::prev(found)->last;
}

void append_upper(std::string& out, char32_t character) {
  if (const char* longer = longer_case(kFullUppercase, character))
    out += longer;
  else
    append(out, static_cast<char32_t>(utf8proc_toupper(static_cast<int32_t>(character))));
}

void append_title(std::string& out, char32_t character) {
  if (const char* longer = longer_case(kFullTitlecase, character))
    out += longer;
  else
    append(out, static_cast<char32_t>(utf8proc_totitle(static_cast<int32_t>(character))));
}

// A sigma is the one of a word's end after a cased letter and before none, marks and the like aside.
bool ends_word(std::u32string_view text, size_t at) {
  size_t before = at;
  while (before > 0 && within(kCaseIgnorable, text[before - 1])) --before;
  if (before == 0 || !within(kCased, text[before - 1])) return false;
  size_t behind = at + 1;
  while (behind < text.size() && within(kCaseIgnorable, text[behind])) ++behind;
  return behind == text.size() || !within(kCased, text[behind]);
}

// `text` is the whole in which the sigma's place is looked up.
void append_lower(std::string& out, std::u32string_view text, size_t at) {
  const char32_t character = text[at];
  if (character == 0x130)
    out += "i\xCC\x87";
  else if (character == 0x3A3)
    append(out, ends_word(text, at) ? 0x3C2 : 0x3C3);
  else
    append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<int32_t>(character))));
}

bool begins_word_after(char32_t character) {
  static constexpr std::u32string_view kBrackets = U"-({[<";
  return is_space(character) || kBrackets.find(character) != kBrackets.npos;
}

}  // namespace

std::string upper(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) append_upper(out, next_character(text, at));
  return out;
}

std::string lower(std::string_view text) {
  const std::u32string all = characters(text);
  std::string out;
  for (size_t at = 0; at < all.size(); ++at) append_lower(out, all, at);
  return out;
}

std::string capitalize(std::string_view text) {
  const std::u32string all = characters(text);
  std::string out;
  for (size_t at = 0; at < all.size(); ++at) {
    if (at == 0)
      append_title(out, all[at]);
    else
      append_lower(out, all, at);
  }
  return out;
}

std::string title(std::string_view text) {
  const std::u32string all = characters(text);
  std::string out;
  bool within_word = false;
  for (size_t at = 0; at < all.size(); ++at) {
    if (within_word)
      append_lower(out, all, at);
    else
      append_title(out, all[at]);
    within_word = within(kCased, all[at]);
  }
  return out;
}

// Each word is a text of its own there, so a sigma does not see beyond it.
std::string title_of_words(std::string_view text) {
  const std::u32string all = characters(text);
  std::string out;
  for (size_t at = 0; at < all.size();) {
    size_t end = at + 1;
    const bool between = begins_word_after(all[at]);
    while (end < all.size() && begins_word_after(all[end]) == between) ++end;
    append_upper(out, all[at]);
    const std::u32string_view rest = std::u32string_view(all).substr(at + 1, end - at - 1);
    for (size_t i = 0; i < rest.size(); ++i) append_lower(out, rest, i);
    at = end;
  }
  return out;
}

}  // namespace limbeck::text::jinja
