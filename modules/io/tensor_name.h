// What a tensor name may be, in files we read and files we write, and how untrusted text is shown in a message:
// quoted, cut, and with nothing in it that could break the line or the terminal.
#pragma once
#include <string>
#include <string_view>

namespace limbeck::io {

inline constexpr size_t kMaxNameBytes = 512;

bool is_utf8(std::string_view text);
// Empty when `name` is fine, else what is wrong with it: "is empty", "has 600 bytes, at most 512 are allowed".
std::string name_fault(std::string_view name);
std::string in_quotes(std::string_view text);

}  // namespace limbeck::io
