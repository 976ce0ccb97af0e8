// Text to token ids and back, from a Hugging Face tokenizer.json, id for id as their `tokenizers` library does it.
// Immutable; any thread may encode.
#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "modules/io/json_text.h"
#include "modules/text/added_tokens.h"
#include "modules/text/decoder.h"
#include "modules/text/post_processor.h"
#include "modules/text/pre_tokenizer.h"

namespace limbeck::text {

// Of a tokenizer.json: Gemma's, the largest there are, has 33 MB and 1.6 million values.
inline constexpr io::JsonLimits kTokenizerLimits{.bytes = size_t{96} << 20, .values = 6'000'000};

enum class SpecialTokens { kAdd, kLeaveOut };  // those that the post-processor puts around a text

class Tokenizer {
 public:
  // `path`: a tokenizer.json or the folder that holds one. WeightsError names file and key.
  explicit Tokenizer(const std::filesystem::path& path);

  // The texts of special tokens within `text` become these tokens either way. InputDataError when `text` is no UTF-8;
  // `where` names it in the message.
  Ids encode(std::string_view text, SpecialTokens special, const std::string& where) const;
  std::string decode(const Ids& ids, bool skip_special) const;

  TokenId top_id() const { return top_id_; }  // the greatest id there is
  const std::string& where() const { return where_; }

 private:
  friend class StreamDecoder;
  void encode_piece(Piece piece, Ids& out) const;
  const std::string* token(TokenId id) const;

  std::string where_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Frame frame_;
  DecodePlan decoder_;
  std::unique_ptr<TokenModel> model_;
  std::unique_ptr<AddedTokens> added_;
  TokenId top_id_ = 0;
};

// Decodes ids as they come; the pieces together are exactly Tokenizer::decode of all of them.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special);
  std::string push(TokenId id);
  std::string finish();

 private:
  void pass(size_t stage, DecodeStage::Part part);

  const Tokenizer& tokenizer_;
  bool skip_special_, first_ = true;
  std::vector<std::unique_ptr<DecodeStage>> stages_;
  size_t given_ = 0;  // bytes of the tokens so far
  std::string ready_;
};

}  // namespace limbeck::text
