// What LlamaCppModel says in llama.cpp's words, the other way round: config.json and generation_config.json of the
// model in a GGUF file, from its numbers and from which tensors there are. Families that share an architecture's name
// come back as the one that says the most general thing: Mistral's as Llama's, with the context that the file says.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "modules/io/gguf_reader.h"

namespace limbeck::gguf {

struct FileConfig {
  nlohmann::json config, generation;
  std::vector<std::string> warnings;  // what the file says and nobody here reads, one line each
};

// WeightsError with the key for an architecture or a number that is not read.
FileConfig read_file_config(const io::GgufReader& file);

}  // namespace limbeck::gguf
