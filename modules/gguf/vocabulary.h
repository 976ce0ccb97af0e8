// A tokenizer.json in llama.cpp's words: tokens with their kinds, merges or scores, special ids, what stands around a
// text, the chat template. Byte-level BPE is its model "gpt2", BPE that falls back to bytes its "llama"; others are
// refused. What llama.cpp does otherwise is said in a warning.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "modules/io/gguf_file.h"
#include "modules/models/family/architecture.h"

namespace limbeck::gguf {

struct Vocabulary {
  io::GgufMetadata metadata;
  std::vector<std::string> warnings;  // one line each
};

// Of the tokenizer in `folder`, for a model with this many rows of embeddings: what is beyond its tokens is filled up.
// `words`: llama.cpp's name for how a text is cut, "" to find it.
Vocabulary read_vocabulary(const std::filesystem::path& folder, const models::Architecture& architecture,
                           const std::string& words);
// Of a file that is used by ids alone.
Vocabulary no_vocabulary();

}  // namespace limbeck::gguf
