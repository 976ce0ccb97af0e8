#include "modules/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "modules/errors.h"
#include "modules/io/json_text.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/growth.h"

namespace limbeck::text {
namespace {

namespace fs = std::filesystem;

fs::path file_of(const fs::path& path) {
  if (!fs::is_directory(path)) return path;
  const fs::path file = path / "tokenizer.json";
  if (fs::exists(fs::symlink_status(file))) return file;
  const std::string folder = path.string();
  for (const char* old : {"tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "tokenizer_config.json"}) {
    if (!fs::exists(path / old)) continue;
    throw WeightsError(
        fmt::format("{}: has {} and no tokenizer.json; write one with: python -c \"import transformers; "
                    "transformers.AutoTokenizer.from_pretrained('{}').save_pretrained('{}')\"",
                    folder, old, folder, folder));
  }
  throw WeightsError(folder +
                     ": has no tokenizer.json, wanted the folder of a Hugging Face tokenizer: name one with "
                     "--tokenizer=DIR, or give ids");
}

io::JsonFile member(nlohmann::json& whole, const std::string& key, const std::string& where) {
  const auto found = whole.find(key);
  if (found == whole.end() || !found->is_object())
    throw WeightsError(fmt::format("{}: key \"{}\", wanted an object", where, key));
  return {std::move(*found), fmt::format("{}: \"{}\"", where, key)};
}

}  // namespace

Tokenizer::Tokenizer(const fs::path& path) {
  const fs::path file = file_of(path);
  where_ = file.string();
  auto whole = io::parse_json(io::read_json_text(file, kTokenizerLimits), where_, kTokenizerLimits);
  if (!whole.is_object()) throw WeightsError(where_ + ": wanted an object");
  model_ = read_token_model(member(whole, "model", where_));
  whole.erase("model");
  const io::JsonFile rest(std::move(whole), where_);
  // "truncation" and "padding" are what some script last used; a call of transformers' tokenizer takes neither.
  if (rest.has("normalizer")) normalizer_ = read_normalizer(rest.child("normalizer"));
  if (rest.has("pre_tokenizer")) pre_tokenizer_ = read_pre_tokenizer(rest.child("pre_tokenizer"));
  if (rest.has("post_processor")) frame_ = read_post_processor(rest.child("post_processor"));
  if (rest.has("decoder")) decoder_ = read_decoder(rest.child("decoder"));
  added_ = std::make_unique<AddedTokens>(rest, model_->vocabulary(), normalizer_);
  for (const Ids* side : {&frame_.before, &frame_.behind}) {
    for (const TokenId id : *side) {
      if (token(id) == nullptr)
        throw WeightsError(fmt::format("{}: \"post_processor\": no token has id {}", where_, id));
    }
  }
  top_id_ = model_->vocabulary().top_id();
  for (const AddedToken& added : added_->all()) top_id_ = std::max(top_id_, added.id);
}

const std::string* Tokenizer::token(TokenId id) const {
  const AddedToken* added = added_->by_id(id);
  return added != nullptr ? &added->content : model_->vocabulary().token(id);
}

void Tokenizer::encode_piece(Piece piece, Ids& out) const {
  Pieces pieces;
  pieces.push_back(std::move(piece));
  if (pre_tokenizer_) pieces = pre_tokenizer_(std::move(pieces));
  for (const Piece& part : pieces) {
    if (!part.text.empty()) model_->encode(part.text, out);
  }
}

Ids Tokenizer::encode(std::string_view text, SpecialTokens special, const std::string& where) const {
  const size_t fault = utf8_fault(text);
  if (fault != text.npos) {
    throw InputDataError(fmt::format("{}: byte {} (0x{:02X}) is not UTF-8: save the text as UTF-8", where, fault,
                                     static_cast<unsigned char>(text[fault])));
  }
  Ids ids;
  if (special == SpecialTokens::kAdd) ids = frame_.before;
  for (const Stretch& raw : added_->find(text, false)) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    std::string part(text.substr(raw.begin, raw.end - raw.begin));
    if (normalizer_) part = normalizer_(std::move(part));
    for (const Stretch& stretch : added_->find(part, true)) {
      if (stretch.id >= 0)
        ids.push_back(stretch.id);
      else
        encode_piece({part.substr(stretch.begin, stretch.end - stretch.begin), raw.begin == 0 && stretch.begin == 0},
                     ids);
    }
  }
  if (special == SpecialTokens::kAdd) ids.insert(ids.end(), frame_.behind.begin(), frame_.behind.end());
  return ids;
}

std::string Tokenizer::decode(const Ids& ids, bool skip_special) const {
  StreamDecoder stream(*this, skip_special);
  std::string text;
  for (const TokenId id : ids) text += stream.push(id);
  return text + stream.finish();
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer), skip_special_(skip_special) {
  if (tokenizer.decoder_) stages_ = tokenizer.decoder_();
}

void StreamDecoder::pass(size_t stage, DecodeStage::Part part) {
  const size_t most = most_grown(given_);
  if (part.text.size() > most) refuse_growth(tokenizer_.where() + ": \"decoder\"", most);
  if (stage == stages_.size()) {
    ready_ += part.text;
    return;
  }
  stages_[stage]->push(std::move(part), [&](DecodeStage::Part next) { pass(stage + 1, std::move(next)); });
}

std::string StreamDecoder::push(TokenId id) {
  const std::string* token = tokenizer_.token(id);
  const AddedToken* added = tokenizer_.added_->by_id(id);
  if (token == nullptr || (skip_special_ && added != nullptr && added->special)) return "";
  if (!tokenizer_.decoder_ && !first_) ready_ += ' ';  // a tokenizer without a decoder puts spaces between tokens
  first_ = false;
  given_ += token->size();
  pass(0, {*token, true});
  return std::exchange(ready_, "");
}

std::string StreamDecoder::finish() {
  for (size_t stage = 0; stage < stages_.size(); ++stage) {
    stages_[stage]->finish([&](DecodeStage::Part part) { pass(stage + 1, std::move(part)); });
  }
  return std::exchange(ready_, "");
}

}  // namespace limbeck::text
