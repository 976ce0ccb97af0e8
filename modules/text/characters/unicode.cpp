#include "modules/text/characters/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

namespace limbeck::text {
namespace {

struct Range {
  uint32_t first, last;
};
struct Mapping {
  uint32_t from, to;
};

#include "modules/text/characters/character_tables.inc"

constexpr Range kWhitespaceRanges[] = {{0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},
                                       {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                                       {0x205F, 0x205F}, {0x3000, 0x3000}};
constexpr Range kChineseRanges[] = {{0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},  {0x20000, 0x2A6DF},
                                    {0x2A700, 0x2B81F}, {0x2B920, 0x2CEAF}, {0x2F800, 0x2FA1F}};

template <size_t kCount>
bool holds(const Range (&ranges)[kCount], char32_t character) {
  const auto* found = std::upper_bound(std::begin(ranges), std::end(ranges), character,
                                       [](char32_t c, const Range& range) { return c < range.first; });
  return found != std::begin(ranges) && character <= std::prev(found)->last;
}

// The bytes of a character that starts with `first`, 0 when none does; `low` and `high` bound the second byte.
size_t length_by_first(unsigned char first, unsigned char& low, unsigned char& high) {
  low = 0x80, high = 0xBF;
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  if (first < 0xE0) return 2;
  if (first == 0xE0) low = 0xA0;
  if (first == 0xED) high = 0x9F;
  if (first < 0xF0) return 3;
  if (first == 0xF0) low = 0x90;
  if (first == 0xF4) high = 0x8F;
  return 4;
}

struct Step {
  size_t bytes;   // well-formed as far as they go
  bool complete;  // a whole character
  bool at_end;    // cut by the end of the text
};

Step step_at(std::string_view text, size_t at) {
  unsigned char low = 0, high = 0;
  const size_t wanted = length_by_first(static_cast<unsigned char>(text[at]), low, high);
  if (wanted == 0) return {1, false, false};
  for (size_t i = 1; i < wanted; ++i) {
    if (at + i == text.size()) return {i, false, true};
    const auto byte = static_cast<unsigned char>(text[at + i]);
    if (byte < low || byte > high) return {i, false, false};
    low = 0x80, high = 0xBF;
  }
  return {wanted, true, false};
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

int combining_class(int32_t character) { return utf8proc_get_property(character)->combining_class; }

// One stretch of characters that utf8proc and the tokenizers know alike. utf8proc's own ordering of marks takes
// quadratic time in their number, so they are sorted here.
void append_normal(std::string& out, std::vector<int32_t>& characters, NormalForm form) {
  if (characters.empty()) return;
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                                      (compatible ? UTF8PROC_COMPAT : UTF8PROC_STABLE));
  std::vector<int32_t> parts;
  parts.reserve(characters.size() * 2);
  std::array<int32_t, 32> buffer{};
  for (const int32_t character : characters) {
    int boundary = 0;
    const auto got = utf8proc_decompose_char(character, buffer.data(), buffer.size(), options, &boundary);
    parts.insert(parts.end(), buffer.begin(), buffer.begin() + std::max<int64_t>(got, 0));
  }
  for (auto at = parts.begin(); at != parts.end();) {
    const auto starts = std::find_if(at, parts.end(), [](int32_t c) { return combining_class(c) != 0; });
    at = std::find_if(starts, parts.end(), [](int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(starts, at, [](int32_t a, int32_t b) { return combining_class(a) < combining_class(b); });
  }
  if (compose) {
    const auto kept = utf8proc_normalize_utf32(parts.data(), static_cast<utf8proc_ssize_t>(parts.size()),
                                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    parts.resize(static_cast<size_t>(std::max<int64_t>(kept, 0)));
  }
  for (const int32_t part : parts) append(out, static_cast<char32_t>(part));
  characters.clear();
}

// Oniguruma's layout: the number of ranges, then their bounds.
template <size_t kCount>
std::vector<uint32_t> as_property(const Range (&ranges)[kCount]) {
  std::vector<uint32_t> flat{static_cast<uint32_t>(kCount)};
  for (const Range& range : ranges) flat.insert(flat.end(), {range.first, range.last});
  return flat;
}

}  // namespace

size_t utf8_fault(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Step step = step_at(text, at);
    if (!step.complete) return at;
    at += step.bytes;
  }
  return std::string_view::npos;
}

char32_t next_character(std::string_view text, size_t& at) {
  const auto first = static_cast<unsigned char>(text[at++]);
  if (first < 0x80) return first;
  const int more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  auto character = static_cast<char32_t>(first & (0x3F >> more));
  for (int i = 0; i < more; ++i) character = character << 6 | (static_cast<unsigned char>(text[at++]) & 0x3F);
  return character;
}

char32_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return next_character(text, at);
}

size_t count_characters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

void append(std::string& text, char32_t character) {
  const auto put = [&](uint32_t byte) { text.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (character < 0x80) return put(character);
  if (character < 0x800) {
    put(0xC0 | character >> 6);
  } else {
    if (character < 0x10000) {
      put(0xE0 | character >> 12);
    } else {
      put(0xF0 | character >> 18);
      put(0x80 | (character >> 12 & 0x3F));
    }
    put(0x80 | (character >> 6 & 0x3F));
  }
  put(0x80 | (character & 0x3F));
}

std::string take_lossy(std::string& bytes, bool keep_open) {
  std::string text;
  size_t at = 0;
  while (at < bytes.size()) {
    const Step step = step_at(bytes, at);
    if (step.at_end && keep_open) break;
    if (step.complete)
      text.append(bytes, at, step.bytes);
    else
      append(text, 0xFFFD);
    at += step.bytes;
  }
  bytes.erase(0, at);
  return text;
}

bool is_in(CharacterSet set, char32_t character) {
  switch (set) {
    case CharacterSet::kWhitespace:
      return holds(kWhitespaceRanges, character);
    case CharacterSet::kNumeric:
      return holds(kNumeric, character);
    case CharacterSet::kPunctuation:
      return holds(kPunctuation, character);
    case CharacterSet::kControl:
      return holds(kControl, character);
    case CharacterSet::kNonspacingMark:
      return holds(kNonspacingMark, character);
    case CharacterSet::kWord:
      return holds(kWord, character);
    case CharacterSet::kChinese:
      return holds(kChineseRanges, character);
  }
  return false;
}

std::string normal_form(std::string_view text, NormalForm form) {
  if (is_ascii(text)) return std::string(text);
  std::string out;
  std::vector<int32_t> known;
  for (size_t at = 0; at < text.size();) {
    const char32_t character = next_character(text, at);
    if (character >= 0x300 && holds(kBeyondNormalForms, character)) {
      append_normal(out, known, form);
      append(out, character);
    } else {
      known.push_back(static_cast<int32_t>(character));
    }
  }
  append_normal(out, known, form);
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const char32_t character = next_character(text, at);
    const auto* found = std::lower_bound(std::begin(kLowercase), std::end(kLowercase), character,
                                         [](const Mapping& mapping, char32_t c) { return mapping.from < c; });
    if (character < 0x80) {
      out.push_back(static_cast<char>(character >= 'A' && character <= 'Z' ? character + 32 : character));
    } else if (character == 0x130) {
      out += "i\xCC\x87";
    } else if (found != std::end(kLowercase) && found->from == character) {
      append(out, found->to);
    } else {
      append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<int32_t>(character))));
    }
  }
  return out;
}

const Property* known_properties(size_t& count) {
  static const std::vector<std::vector<uint32_t>> kept = {
      as_property(kPropertyL),  as_property(kPropertyLu), as_property(kPropertyLl), as_property(kPropertyLm),
      as_property(kPropertyLo), as_property(kPropertyM),  as_property(kPropertyN),  as_property(kPropertyNd),
      as_property(kPropertyP),  as_property(kPropertyS),  as_property(kPropertyHan)};
  static const std::array<Property, 11> properties = {{{"L", kept[0].data()},
                                                       {"Lu", kept[1].data()},
                                                       {"Ll", kept[2].data()},
                                                       {"Lm", kept[3].data()},
                                                       {"Lo", kept[4].data()},
                                                       {"M", kept[5].data()},
                                                       {"N", kept[6].data()},
                                                       {"Nd", kept[7].data()},
                                                       {"P", kept[8].data()},
                                                       {"S", kept[9].data()},
                                                       {"Han", kept[10].data()}}};
  count = properties.size();
  return properties.data();
}

}  // namespace limbeck::text
