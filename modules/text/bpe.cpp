// Byte-pair merges: the earliest merge of the table first, by a heap, so that a long piece takes n log n steps.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <queue>
#include <random>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/token_model.h"

namespace limbeck::text {
namespace {

struct MergeTo {
  int32_t rank;
  TokenId id;
};

// Hashes with a secret: a stranger's file cannot be made of pairs that all collide.
struct PairHash {
  uint64_t secret = std::random_device()() | uint64_t{std::random_device()()} << 32;
  size_t operator()(uint64_t pair) const {
    uint64_t x = (pair ^ secret) * 0x9E3779B97F4A7C15ULL;
    x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9ULL;
    return x ^ x >> 32;
  }
};
using MergeTable = std::unordered_map<uint64_t, MergeTo, PairHash>;

uint64_t pair_of(TokenId left, TokenId right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

struct Symbol {
  TokenId id;
  int32_t previous, next;  // -1: none
  bool gone = false;
};

struct Candidate {
  int32_t rank, position;
  TokenId id;
  bool operator<(const Candidate& other) const {  // the heap's top is the smallest
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

void merge(std::vector<Symbol>& symbols, const MergeTable& merges) {
  std::priority_queue<Candidate> queue;
  const auto propose = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const auto found =
        merges.find(pair_of(symbols[static_cast<size_t>(left)].id, symbols[static_cast<size_t>(right)].id));
    if (found != merges.end()) queue.push({found->second.rank, left, found->second.id});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) propose(static_cast<int32_t>(i), static_cast<int32_t>(i + 1));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(top.position)];
    if (left.gone || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    const auto found = merges.find(pair_of(left.id, right.id));
    if (found == merges.end() || found->second.id != top.id) continue;  // overtaken by another merge
    left.id = top.id;
    left.next = right.next;
    right.gone = true;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = top.position;
    propose(left.previous, top.position);
    propose(top.position, left.next);
  }
}

// Words seen lately. Encoding stays a const function that any thread may call.
class WordCache {
 public:
  bool take(std::string_view word, Ids& out) const {
    const std::lock_guard lock(mutex_);
    const auto found = words_.find(std::string(word));
    if (found == words_.end()) return false;
    out.insert(out.end(), found->second.begin(), found->second.end());
    return true;
  }
  void keep(std::string_view word, Ids::const_iterator begin, Ids::const_iterator end) {
    const std::lock_guard lock(mutex_);
    if (words_.size() < kMost) words_.emplace(word, Ids(begin, end));
  }
  static constexpr size_t kLongest = 64;

 private:
  static constexpr size_t kMost = 1 << 15;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Ids> words_;
};

class Bpe : public TokenModel {
 public:
  explicit Bpe(const io::JsonFile& model);

  void encode(std::string_view piece, Ids& out) const override {
    if (piece.empty()) return;
    if (ignore_merges_) {
      if (const auto id = vocabulary().find(piece)) return out.push_back(*id);
    }
    const bool cached = piece.size() <= WordCache::kLongest;
    if (cached && cache_->take(piece, out)) return;
    const size_t before = out.size();
    std::vector<Symbol> symbols = start(piece);
    merge(symbols, merges_);
    for (const Symbol& symbol : symbols) {
      if (!symbol.gone) out.push_back(symbol.id);
    }
    if (cached) cache_->keep(piece, out.begin() + static_cast<std::ptrdiff_t>(before), out.end());
  }

 private:
  void read_merges(const io::JsonFile& model);
  std::vector<Symbol> start(std::string_view piece) const;

  std::optional<TokenId> unknown_;
  std::string prefix_, suffix_;
  bool fuse_unknown_, byte_fallback_, ignore_merges_;
  std::array<std::optional<TokenId>, 256> byte_ids_;
  MergeTable merges_;
  std::unique_ptr<WordCache> cache_ = std::make_unique<WordCache>();
};

Bpe::Bpe(const io::JsonFile& model)
    : TokenModel(Vocabulary(model)),
      prefix_(model.string_or("continuing_subword_prefix", "")),
      suffix_(model.string_or("end_of_word_suffix", "")),
      fuse_unknown_(model.boolean_or("fuse_unk", false)),
      byte_fallback_(model.boolean_or("byte_fallback", false)),
      ignore_merges_(model.boolean_or("ignore_merges", false)) {
  if (model.number_or("dropout", 0.0, 0.0, 1.0) != 0.0) {
    throw WeightsError(model.where() + ": key \"dropout\" draws merges by chance, wanted null");
  }
  if (model.has("unk_token")) unknown_ = vocabulary().required(model, model.string("unk_token"));
  for (size_t byte = 0; byte < 256; ++byte) byte_ids_[byte] = vocabulary().find(fmt::format("<0x{:02X}>", byte));
  read_merges(model);
}

void Bpe::read_merges(const io::JsonFile& model) {
  const auto list = model.value().find("merges");
  if (list == model.value().end() || !list->is_array()) {
    throw WeightsError(model.where() + ": key \"merges\" is no list, wanted a list of pairs");
  }
  merges_.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    const auto& entry = (*list)[i];
    std::string_view left, right;
    if (entry.is_string()) {
      const std::string_view both = entry.get_ref<const std::string&>();
      const size_t space = both.find(' ');
      if (space != both.npos && both.find(' ', space + 1) == both.npos) {
        left = both.substr(0, space), right = both.substr(space + 1);
      }
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      left = entry[0].get_ref<const std::string&>(), right = entry[1].get_ref<const std::string&>();
    }
    const auto a = vocabulary().find(left), b = vocabulary().find(right);
    const std::string whole =
        right.size() < prefix_.size() ? "" : std::string(left) + std::string(right.substr(prefix_.size()));
    const auto merged = vocabulary().find(whole);
    if (left.empty() || right.empty() || !a || !b || !merged) {
      throw WeightsError(fmt::format(
          "{}: \"merges\"[{}] = {}, wanted two tokens of \"vocab\" that together are a third", model.where(), i,
          io::in_quotes(entry.is_string() ? entry.get<std::string>() : std::string(left) + " " + std::string(right))));
    }
    merges_[pair_of(*a, *b)] = {static_cast<int32_t>(i), *merged};
  }
}

// A symbol for each character; what the vocabulary lacks becomes its bytes, the unknown token, or nothing.
std::vector<Symbol> Bpe::start(std::string_view piece) const {
  Ids ids;
  bool pending = false;
  std::string decorated;
  for (size_t at = 0; at < piece.size();) {
    const size_t begin = at;
    next_character(piece, at);
    std::string_view character = piece.substr(begin, at - begin);
    if ((begin > 0 && !prefix_.empty()) || (at == piece.size() && !suffix_.empty())) {
      decorated = (begin > 0 ? prefix_ : "") + std::string(character) + (at == piece.size() ? suffix_ : "");
      character = decorated;
    }
    if (const auto id = vocabulary().find(character)) {
      if (pending) ids.push_back(*unknown_);
      pending = false;
      ids.push_back(*id);
      continue;
    }
    const auto known = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)].has_value(); };
    if (byte_fallback_ && std::all_of(character.begin(), character.end(), known)) {
      // An unknown token that is pending comes after the bytes, as in the original.
      for (const char c : character) ids.push_back(*byte_ids_[static_cast<unsigned char>(c)]);
    } else if (unknown_) {
      if (pending && !fuse_unknown_) ids.push_back(*unknown_);
      pending = true;
    }
  }
  if (pending) ids.push_back(*unknown_);
  std::vector<Symbol> symbols;
  symbols.reserve(ids.size());
  for (const TokenId id : ids) {
    const auto i = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, i - 1, i + 1 == static_cast<int32_t>(ids.size()) ? -1 : i + 1});
  }
  return symbols;
}

}  // namespace

std::unique_ptr<TokenModel> read_bpe(const io::JsonFile& model) { return std::make_unique<Bpe>(model); }

}  // namespace limbeck::text
