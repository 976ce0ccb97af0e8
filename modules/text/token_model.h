// The "model" of a tokenizer.json: a piece of text to token ids. Byte-pair merges, WordPiece and whole words.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "modules/io/json_file.h"

namespace limbeck::text {

using TokenId = int32_t;
using Ids = std::vector<TokenId>;

// No id of a sane vocabulary is larger.
inline constexpr int64_t kMaxTokenId = (int64_t{1} << 24) - 1;

class Vocabulary {
 public:
  explicit Vocabulary(const io::JsonFile& model);  // its "vocab": {"token": id, ...}, ids unique

  std::optional<TokenId> find(std::string_view token) const;
  const std::string* token(TokenId id) const;  // null: no such id
  TokenId required(const io::JsonFile& from, const std::string& token) const;
  TokenId top_id() const { return static_cast<TokenId>(tokens_.size()) - 1; }
  size_t longest() const { return longest_; }  // bytes

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  std::unordered_map<std::string, TokenId, Hash, std::equal_to<>> ids_;
  std::vector<const std::string*> tokens_;
  size_t longest_ = 0;
};

class TokenModel {
 public:
  explicit TokenModel(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}
  virtual ~TokenModel() = default;
  virtual void encode(std::string_view piece, Ids& out) const = 0;  // appends
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  Vocabulary vocabulary_;
};

std::unique_ptr<TokenModel> read_token_model(const io::JsonFile& model);
std::unique_ptr<TokenModel> read_bpe(const io::JsonFile& model);

}  // namespace limbeck::text
