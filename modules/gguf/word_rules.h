// How a tokenizer.json cuts a text into words before it looks for tokens, as llama.cpp names it: that program has a
// list of names ("tokenizer.ggml.pre") and a rule for each in its own code, and the file says the name alone. One table
// for both directions.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "modules/io/json_file.h"

namespace limbeck::gguf {

struct WordRules {
  std::string name;  // llama.cpp's, or "" where its list has none that cuts alike
  std::string said;  // what tokenizer.json says, for messages
};

// Of a byte-level tokenizer. `ignore_merges`: a word that is a token is that token, which names say too.
WordRules word_rules(const io::JsonFile& tokenizer, bool ignore_merges);

// The other way round, of llama.cpp's name.
struct NamedWords {
  nlohmann::json pre_tokenizer;  // as tokenizer.json says it
  bool ignore_merges = false;
  bool begins_by_default = false;  // llama.cpp puts the token that begins a text there, where the file says nothing
};
// None: no such name is known; known_words() lists those that are.
std::optional<NamedWords> named_words(const std::string& name);
std::vector<std::string> known_words();

}  // namespace limbeck::gguf
