// Python's str: characters are code points, spaces and cases are Unicode's. All texts are valid UTF-8.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace limbeck::text::jinja {

bool is_space(char32_t character);      // str.isspace
bool is_printable(char32_t character);  // str.isprintable
bool is_letter(char32_t character);     // str.isalpha

std::u32string characters(std::string_view text);
std::string from_characters(std::u32string_view characters);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);           // str.title
std::string title_of_words(std::string_view text);  // Jinja's filter, which knows words by what is before them

enum class Side { kBoth, kLeft, kRight };
// Without `set`, spaces.
std::string_view strip(std::string_view text, Side side, const std::optional<std::string>& set = {});

std::vector<std::string> split(std::string_view text, int64_t most);  // at spaces; most < 0: all
std::vector<std::string> split_from_right(std::string_view text, int64_t most);
std::vector<std::string> split_at(std::string_view text, std::string_view separator, int64_t most);
std::vector<std::string> split_at_from_right(std::string_view text, std::string_view separator, int64_t most);
std::vector<std::string> split_lines(std::string_view text, bool keep_ends);
std::string replace(std::string_view text, std::string_view old, std::string_view with, int64_t most);

std::string python_quoted(std::string_view text);  // repr(str)
std::string shown(double number);                  // repr(float)
std::optional<double> parse_float(std::string_view text);
// int(text, base): none when Python refuses it; `too_big` when it is an integer beyond 64 bits.
std::optional<int64_t> parse_integer(std::string_view text, int base, bool& too_big);
std::string escaped(std::string_view text);  // for HTML, as MarkupSafe does it

}  // namespace limbeck::text::jinja
