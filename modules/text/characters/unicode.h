// Characters as Hugging Face's tokenizers see them: UTF-8, the sets their rules are made of, normal forms, lower case.
// All texts are valid UTF-8 but where utf8_fault() is asked.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace limbeck::text {

enum class CharacterSet {
  kWhitespace,
  kNumeric,
  kPunctuation,     // BERT's: ASCII's and Unicode's
  kControl,         // what BERT's normalizer removes
  kNonspacingMark,  // accents, once taken apart
  kWord,            // \w of Rust's regular expressions
  kChinese          // BERT's
};

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// Where the first byte that is no UTF-8 stands; npos when there is none.
size_t utf8_fault(std::string_view text);
// The character at `at`, which is moved behind it.
char32_t next_character(std::string_view text, size_t& at);
char32_t last_character(std::string_view text);
size_t count_characters(std::string_view text);
void append(std::string& text, char32_t character);
// Malformed bytes become U+FFFD, one for each longest beginning of a character. With `keep_open`, a beginning at the
// end is left in `bytes` for what follows; otherwise nothing is.
std::string take_lossy(std::string& bytes, bool keep_open);

bool is_in(CharacterSet set, char32_t character);
std::string normal_form(std::string_view text, NormalForm form);
std::string lowercase(std::string_view text);

// The ranges of a regular expression's \p{NAME} as Oniguruma wants them (count, from, to, ...), for properties whose
// newer characters this machine's Oniguruma may not know.
struct Property {
  const char* name;
  const uint32_t* ranges;
};
const Property* known_properties(size_t& count);

}  // namespace limbeck::text
