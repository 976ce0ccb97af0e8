// The "added_tokens" of a tokenizer.json: texts that are one token wherever they stand, found before anything is cut.
#pragma once
#include <string>
#include <unordered_map>
#include <vector>

#include "modules/text/normalizer.h"
#include "modules/text/token_model.h"

namespace limbeck::text {

struct AddedToken {
  std::string content;
  TokenId id = 0;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

// A stretch of a text: an added token, or (id < 0) what stands between them.
struct Stretch {
  size_t begin = 0, end = 0;
  TokenId id = -1;
};

class AddedTokens {
 public:
  // `file`: the whole tokenizer.json but its model.
  AddedTokens(const io::JsonFile& file, const Vocabulary& vocabulary, const Normalizer& normalizer);

  // The longest token at the first place, and so on. `normalized`: those looked for in the normalized text.
  std::vector<Stretch> find(std::string_view text, bool normalized) const;
  const AddedToken* by_id(TokenId id) const;
  const AddedToken* by_content(const std::string& content) const;
  const std::vector<AddedToken>& all() const { return tokens_; }

 private:
  // A tree of bytes: one node's children by (node, byte).
  struct Tree {
    std::unordered_map<uint64_t, uint32_t> children;
    std::vector<int32_t> token_at{-1};  // by node: index in tokens_
    bool starts[256] = {};
    void add(std::string_view text, int32_t token);
    int32_t longest(std::string_view text, size_t at, size_t& end) const;
  };
  void take(AddedToken token, const Vocabulary& vocabulary, const std::string& where);

  std::vector<AddedToken> tokens_;
  std::unordered_map<TokenId, size_t> by_id_;
  std::unordered_map<std::string, size_t> by_content_;
  Tree raw_, normalized_;
};

}  // namespace limbeck::text
