// Small data sets for tests, in the format of tools/prepare_data.py: real safetensors, a real manifest.
#pragma once
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace limbeck::test {

struct TokenDocument {
  std::vector<int32_t> ids;
  std::vector<uint8_t> mask = {};         // empty: every token is a target
  std::vector<int32_t> teacher_ids = {};  // with `position`, in a set of two tokenizers
  std::vector<int32_t> position = {};
  int64_t label = -100;
};

struct TokenSet {
  std::vector<std::vector<TokenDocument>> shards;
  int64_t vocabulary = 100, end_of_sequence = -1, padding = -1;
  int64_t teacher_vocabulary = 0;  // not 0: two tokenizers
  int64_t classes = 0;             // not 0: labelled
};

// The manifest as an object, without its own checksum.
nlohmann::ordered_json write_token_set(const std::filesystem::path& folder, const TokenSet& set);
// manifest.json of such an object, with the checksum it must have.
void write_manifest(const std::filesystem::path& folder, const nlohmann::ordered_json& manifest);
uint32_t crc_of_text(const std::string& text);
uint32_t crc_of_file(const std::filesystem::path& path);

}  // namespace limbeck::test
