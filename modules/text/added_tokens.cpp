#include "modules/text/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"

namespace limbeck::text {
namespace {

constexpr size_t kMaxTokenBytes = 512;  // bounds what a search costs for each byte of the text

bool ends_in(std::string_view text, CharacterSet set) { return !text.empty() && is_in(set, last_character(text)); }

bool starts_with(std::string_view text, CharacterSet set) {
  size_t at = 0;
  return !text.empty() && is_in(set, next_character(text, at));
}

// Where the spaces before `end` begin, not before `floor`.
size_t before_spaces(std::string_view text, size_t floor, size_t end) {
  while (end > floor && ends_in(text.substr(0, end), CharacterSet::kWhitespace)) {
    do --end;
    while (end > floor && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  }
  return end;
}

size_t behind_spaces(std::string_view text, size_t at) {
  for (size_t next = at; next < text.size(); at = next) {
    if (!is_in(CharacterSet::kWhitespace, next_character(text, next))) break;
  }
  return at;
}

}  // namespace

void AddedTokens::Tree::add(std::string_view text, int32_t token) {
  uint32_t node = 0;
  starts[static_cast<unsigned char>(text[0])] = true;
  for (const char c : text) {
    const auto fresh = static_cast<uint32_t>(token_at.size());
    const auto [found, made] = children.emplace(uint64_t{node} << 8 | static_cast<unsigned char>(c), fresh);
    if (made) token_at.push_back(-1);
    node = found->second;
  }
  if (token_at[node] < 0) token_at[node] = token;
}

int32_t AddedTokens::Tree::longest(std::string_view text, size_t at, size_t& end) const {
  int32_t best = -1;
  if (!starts[static_cast<unsigned char>(text[at])]) return best;
  uint32_t node = 0;
  while (at < text.size()) {
    const auto found = children.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[at]));
    if (found == children.end()) break;
    node = found->second;
    ++at;
    if (token_at[node] >= 0) best = token_at[node], end = at;
  }
  return best;
}

AddedTokens::AddedTokens(const io::JsonFile& file, const Vocabulary& vocabulary, const Normalizer& normalizer) {
  if (!file.has("added_tokens")) return;
  const auto& list = file.value().at("added_tokens");
  if (!list.is_array()) throw WeightsError(file.where() + ": key \"added_tokens\", wanted a list");
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = fmt::format("{}: \"added_tokens\"[{}]", file.where(), i);
    if (!list[i].is_object()) throw WeightsError(where + ": wanted an object");
    const io::JsonFile entry(list[i], where);
    AddedToken token;
    token.content = entry.string("content");
    token.id = static_cast<TokenId>(entry.integer("id", 0, kMaxTokenId));
    token.single_word = entry.boolean_or("single_word", false);
    token.lstrip = entry.boolean_or("lstrip", false);
    token.rstrip = entry.boolean_or("rstrip", false);
    token.special = entry.boolean_or("special", false);
    token.normalized = entry.boolean_or("normalized", !token.special);
    take(std::move(token), vocabulary, where);
  }
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    const bool through = token.normalized && normalizer;
    const std::string wanted = through ? normalizer(token.content) : token.content;
    if (wanted.size() > kMaxTokenBytes) {
      throw WeightsError(fmt::format("{}: \"added_tokens\": {} has {} bytes behind the normalizer, wanted at most {}",
                                     file.where(), io::in_quotes(token.content), wanted.size(), kMaxTokenBytes));
    }
    if (!wanted.empty()) (token.normalized ? normalized_ : raw_).add(wanted, static_cast<int32_t>(i));
  }
}

void AddedTokens::take(AddedToken token, const Vocabulary& vocabulary, const std::string& where) {
  const auto refuse = [&](const std::string& what) {
    throw WeightsError(fmt::format("{}: {} with id {}: {}", where, io::in_quotes(token.content), token.id, what));
  };
  if (token.content.empty() || token.content.size() > kMaxTokenBytes) {
    refuse(fmt::format("has {} bytes, wanted 1 to {}", token.content.size(), kMaxTokenBytes));
  }
  if (const auto known = vocabulary.find(token.content)) {
    if (*known != token.id) refuse(fmt::format("\"vocab\" has this token with id {}", *known));
  } else if (vocabulary.token(token.id) != nullptr) {
    refuse("\"vocab\" has another token with this id");
  }
  if (by_content_.contains(token.content)) refuse("stands there twice");
  if (!by_id_.emplace(token.id, tokens_.size()).second) refuse("another added token has this id");
  by_content_.emplace(token.content, tokens_.size());
  tokens_.push_back(std::move(token));
}

std::vector<Stretch> AddedTokens::find(std::string_view text, bool normalized) const {
  const Tree& tree = normalized ? normalized_ : raw_;
  std::vector<Stretch> found;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    size_t begin = at, end = at + 1;
    const int32_t index = tree.longest(text, at, end);
    at = end;
    if (index < 0) continue;
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    if (token.single_word &&
        (ends_in(text.substr(0, begin), CharacterSet::kWord) || starts_with(text.substr(end), CharacterSet::kWord))) {
      continue;
    }
    if (token.lstrip) begin = before_spaces(text, std::min(done, begin), begin);
    if (token.rstrip) end = behind_spaces(text, end);
    if (done < begin) found.push_back({done, begin, -1});
    found.push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) found.push_back({done, text.size(), -1});
  return found;
}

const AddedToken* AddedTokens::by_id(TokenId id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

const AddedToken* AddedTokens::by_content(const std::string& content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? nullptr : &tokens_[found->second];
}

}  // namespace limbeck::text
