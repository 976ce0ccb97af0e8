#include "modules/text/token_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/normalizer.h"

namespace limbeck::text {
namespace {

// The longest known beginning of a word, then of its rest; a word with an unknown rest is unknown as a whole.
class WordPiece : public TokenModel {
 public:
  explicit WordPiece(const io::JsonFile& model)
      : TokenModel(Vocabulary(model)),
        unknown_(vocabulary().required(model, model.string_or("unk_token", "[UNK]"))),
        prefix_(model.string_or("continuing_subword_prefix", "##")),
        most_(static_cast<size_t>(model.integer_or("max_input_chars_per_word", 100, 1, 1000))) {}

  void encode(std::string_view piece, Ids& out) const override {
    if (count_characters(piece) > most_) return out.push_back(unknown_);
    const size_t before = out.size();
    std::string candidate;
    for (size_t begin = 0; begin < piece.size();) {
      candidate.assign(begin > 0 ? prefix_ : "");
      const size_t start = candidate.size();
      candidate += piece.substr(begin, vocabulary().longest());
      std::optional<TokenId> id;
      while (candidate.size() > start && !(id = vocabulary().find(candidate))) {
        do candidate.pop_back();  // one character: its continuation bytes first
        while (candidate.size() > start && begin + candidate.size() - start < piece.size() &&
               (static_cast<unsigned char>(piece[begin + candidate.size() - start]) & 0xC0) == 0x80);
      }
      if (!id) {
        out.resize(before);
        return out.push_back(unknown_);
      }
      out.push_back(*id);
      begin += candidate.size() - start;
    }
  }

 private:
  TokenId unknown_;
  std::string prefix_;
  size_t most_;
};

class WordLevel : public TokenModel {
 public:
  explicit WordLevel(const io::JsonFile& model)
      : TokenModel(Vocabulary(model)), unknown_(vocabulary().required(model, model.string_or("unk_token", "<unk>"))) {}

  void encode(std::string_view piece, Ids& out) const override {
    out.push_back(vocabulary().find(piece).value_or(unknown_));
  }

 private:
  TokenId unknown_;
};

}  // namespace

Vocabulary::Vocabulary(const io::JsonFile& model) {
  const auto found = model.value().find("vocab");
  if (found == model.value().end() || !found->is_object() || found->empty()) {
    throw WeightsError(model.where() + ": key \"vocab\" is missing or empty, wanted an object of tokens and ids");
  }
  ids_.reserve(found->size());
  for (const auto& [token, id] : found->items()) {
    const std::string wanted = fmt::format("an integer in [0, {}] that no other token has", kMaxTokenId);
    const auto refuse = [&] {
      throw WeightsError(fmt::format("{}: \"vocab\": token {} has id {}, wanted {}", model.where(),
                                     io::in_quotes(token), id.is_number() ? id.dump() : id.type_name(), wanted));
    };
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId)) refuse();
    const auto index = id.get<size_t>();
    if (index >= tokens_.size()) tokens_.resize(index + 1, nullptr);
    if (tokens_[index] != nullptr) refuse();
    tokens_[index] = &ids_.emplace(token, static_cast<TokenId>(index)).first->first;
    longest_ = std::max(longest_, token.size());
  }
}

std::optional<TokenId> Vocabulary::find(std::string_view token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

const std::string* Vocabulary::token(TokenId id) const {
  return id >= 0 && static_cast<size_t>(id) < tokens_.size() ? tokens_[static_cast<size_t>(id)] : nullptr;
}

TokenId Vocabulary::required(const io::JsonFile& from, const std::string& token) const {
  if (const auto id = find(token)) return *id;
  throw WeightsError(fmt::format("{}: {} is not in \"vocab\"", from.where(), io::in_quotes(token)));
}

std::unique_ptr<TokenModel> read_token_model(const io::JsonFile& model) {
  // Files of before 2021 leave the type out: merges tell BPE, a longest word WordPiece.
  const std::string guess = model.has("merges") ? "BPE" : model.has("max_input_chars_per_word") ? "WordPiece" : "";
  const std::string type = guess.empty() ? model.string("type") : model.string_or("type", guess);
  if (type == "BPE") return read_bpe(model);
  if (type == "WordPiece") return std::make_unique<WordPiece>(model);
  if (type == "WordLevel") return std::make_unique<WordLevel>(model);
  refuse_type(model, "BPE, WordPiece or WordLevel");
}

}  // namespace limbeck::text
