// The "pre_tokenizer" of a tokenizer.json: a normalized text to the pieces within which tokens are looked for.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "modules/io/json_file.h"

namespace limbeck::text {

struct Piece {
  std::string text;
  bool first = false;  // it begins where the whole text does
};
using Pieces = std::vector<Piece>;
using PreTokenizer = std::function<Pieces(Pieces)>;

PreTokenizer read_pre_tokenizer(const io::JsonFile& from);

enum class PrependScheme { kAlways, kFirst, kNever };
PrependScheme read_prepend_scheme(const io::JsonFile& from);
// The one character under `key`.
std::string read_character(const io::JsonFile& from, const std::string& key, const std::string& fallback);

}  // namespace limbeck::text
