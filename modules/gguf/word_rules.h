// How a tokenizer.json cuts a text into words before it looks for tokens, as llama.cpp names it: that program has a
// list of names ("tokenizer.ggml.pre") and a rule for each in its own code, and the file says the name alone.
#pragma once
#include <string>

#include "modules/io/json_file.h"

namespace limbeck::gguf {

struct WordRules {
  std::string name;  // llama.cpp's, or "" where its list has none that cuts alike
  std::string said;  // what tokenizer.json says, for messages
};

// Of a byte-level tokenizer. `ignore_merges`: a word that is a token is that token, which names say too.
WordRules word_rules(const io::JsonFile& tokenizer, bool ignore_merges);

}  // namespace limbeck::gguf
