// The "normalizer" of a tokenizer.json: text to text, before it is cut.
#pragma once
#include <functional>
#include <string>

#include "modules/io/json_file.h"

namespace limbeck::text {

using Normalizer = std::function<std::string(std::string)>;

inline constexpr int kMaxNesting = 8;  // of Sequences within Sequences

// `from`: the object that holds "type". A type that is not known is refused by name.
Normalizer read_normalizer(const io::JsonFile& from);
// The members of a Sequence's list, each with its place.
std::vector<io::JsonFile> read_steps(const io::JsonFile& from, const std::string& key, int depth);
[[noreturn]] void refuse_type(const io::JsonFile& from, const std::string& known);
// The 256 characters by which byte-level tokenizers write bytes.
const std::string& byte_as_text(unsigned char byte);
std::string bytes_as_text(std::string_view bytes);

}  // namespace limbeck::text
