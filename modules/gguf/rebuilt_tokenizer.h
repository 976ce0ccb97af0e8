// What vocabulary.h writes, the other way round: tokenizer.json and tokenizer_config.json from the vocabulary of a GGUF
// file. llama.cpp's models "gpt2" (byte-level BPE, with the word rules of word_rules.h) and "llama" (SentencePiece's
// BPE: scores become merges) are rebuilt; for others the folder gets none, and says so.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "modules/io/gguf_reader.h"

namespace limbeck::gguf {

struct RebuiltTokenizer {
  nlohmann::json tokenizer;  // null: none
  nlohmann::json config;     // tokenizer_config.json, with the chat template
  std::vector<std::string> warnings;
};

// For a model with this many rows of embeddings. `words`: llama.cpp's name for how a text is cut, "" for the file's.
// WeightsError with the key where the vocabulary contradicts itself.
RebuiltTokenizer rebuild_tokenizer(const io::GgufReader& file, int64_t rows, const std::string& words);

}  // namespace limbeck::gguf
