// The ids that a model's folder gives a meaning to, in llama.cpp's words: where a text begins and ends, what is unknown
// and what fills up, whether the first two are added, and the chat template.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "modules/io/gguf_file.h"
#include "modules/models/family/architecture.h"
#include "modules/text/post_processor.h"

namespace limbeck::gguf {

struct SpecialTokens {
  std::optional<int64_t> unknown;
  io::GgufMetadata metadata;
  std::vector<std::string> warnings;
};

using IdOfToken = std::function<std::optional<int64_t>(const std::string&)>;

// `frame`: what the tokenizer puts around a text; `default_end`: the id that llama.cpp takes for the end where the file
// says none.
SpecialTokens special_tokens(const std::filesystem::path& folder, const models::Architecture& architecture,
                             const text::Frame& frame, const IdOfToken& id_of, int64_t default_end);

}  // namespace limbeck::gguf
