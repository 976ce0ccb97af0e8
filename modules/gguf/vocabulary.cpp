#include "modules/gguf/vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <unordered_map>

#include "modules/errors.h"
#include "modules/gguf/special_tokens.h"
#include "modules/gguf/token_kind.h"
#include "modules/gguf/token_scores.h"
#include "modules/gguf/word_rules.h"
#include "modules/io/tensor_name.h"
#include "modules/text/normalizer.h"
#include "modules/text/pre_tokenizer.h"
#include "modules/text/tokenizer.h"

namespace limbeck::gguf {
namespace {

namespace fs = std::filesystem;
using models::Architecture;

constexpr int64_t kDefaultEndOfBpe = 11, kDefaultEndOfPieces = 2;

std::string byte_token(int byte) { return fmt::format("<0x{:02X}>", byte); }

class Writer {
 public:
  Writer(const fs::path& folder, const Architecture& architecture)
      : folder_(fs::is_directory(folder) ? folder : folder.parent_path()),
        file_(fs::is_directory(folder) ? folder / "tokenizer.json" : folder),
        a_(architecture),
        top_id_(text::Tokenizer(folder).top_id()),  // whatever is wrong with the file is said here
        whole_(
            io::parse_json(io::read_json_text(file_, text::kTokenizerLimits), file_.string(), text::kTokenizerLimits),
            file_.string()),
        model_(whole_.child("model")) {
    if (top_id_ >= a_.vocabulary) {
      throw UsageError(
          fmt::format("{}: its greatest id is {}, and the model has {} rows of embeddings: it is another "
                      "model's tokenizer; name the right one by --tokenizer=DIR",
                      file_.string(), top_id_, a_.vocabulary));
    }
    const std::string type = model_.string("type");
    if (type != "BPE") {
      throw UsageError(fmt::format(
          "{}: its model is {}, and BPE alone is written as GGUF: write the file for use by ids, --without-tokenizer",
          file_.string(), type));
    }
  }

  Vocabulary written(const std::string& words) {
    read_tokens();
    read_merges();
    const bool pieces = model_.boolean_or("byte_fallback", false);
    if (pieces)
      write_pieces();
    else
      write_byte_level(words);
    text::Frame frame;
    if (whole_.has("post_processor")) frame = text::read_post_processor(whole_.child("post_processor"));
    const auto id_of = [this](const std::string& token) {
      const auto found = ids_.find(token);
      return found == ids_.end() ? std::nullopt : std::optional(found->second);
    };
    const int64_t default_end = pieces ? kDefaultEndOfPieces : kDefaultEndOfBpe;
    SpecialTokens special = special_tokens(folder_, a_, frame, id_of, default_end);
    if (pieces && special.unknown) kinds_[static_cast<size_t>(*special.unknown)] = kUnknown;
    add("tokens", std::move(tokens_));
    add("token_type", std::move(kinds_));
    for (auto& pair : special.metadata) result_.metadata.push_back(std::move(pair));
    for (auto& line : special.warnings) warn(line);
    return std::move(result_);
  }

 private:
  // Ids that no token has are filled up: llama.cpp counts the embedding's rows by this list.
  void read_tokens() {
    tokens_.resize(static_cast<size_t>(a_.vocabulary));
    kinds_.assign(tokens_.size(), kUnused);
    for (const auto& [token, id] : model_.value().at("vocab").items()) place(token, id.get<int64_t>(), kNormal);
    std::set<std::string> flagged;
    if (whole_.has("added_tokens")) {
      for (const auto& added : whole_.value().at("added_tokens")) {
        const io::JsonFile token(added, file_.string());
        const bool special = token.boolean_or("special", false);
        place(token.string("content"), token.integer("id", 0, text::kMaxTokenId), special ? kControl : kUserDefined);
        for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
          if (token.boolean_or(flag, false)) flagged.insert(token.string("content"));
        }
      }
    }
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (!tokens_[id].empty()) continue;
      tokens_[id] = fmt::format("[unused id {}]", id);
      if (!ids_.emplace(tokens_[id], id).second) tokens_[id] += " of the model";
    }
    if (flagged.empty()) return;
    warn(
        fmt::format("{} added tokens take spaces or words beside them into account (lstrip, rstrip, single_word; the "
                    "first is {}), which llama.cpp does not",
                    flagged.size(), io::in_quotes(*flagged.begin())));
  }

  void place(const std::string& token, int64_t id, TokenKind kind) {
    tokens_[static_cast<size_t>(id)] = token;
    kinds_[static_cast<size_t>(id)] = kind;
    ids_[token] = id;
  }

  void read_merges() {
    for (const auto& merge : model_.value().at("merges")) {
      if (merge.is_array()) {
        merges_.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
        continue;
      }
      const auto& both = merge.get_ref<const std::string&>();
      const size_t space = both.find(' ');
      merges_.emplace_back(both.substr(0, space), both.substr(space + 1));
    }
  }

  void write_byte_level(const std::string& given) {
    const bool ignore_merges = model_.boolean_or("ignore_merges", false);
    const WordRules rules = whole_.has("pre_tokenizer") ? word_rules(whole_, ignore_merges) : WordRules{"", "nothing"};
    if (given.empty() && rules.name.empty()) {
      warn(
          fmt::format("llama.cpp has no name that limbeck knows for how this tokenizer cuts a text ({}{}): the file "
                      "says \"default\", and texts will be cut otherwise; where you know the name, say "
                      "--pre-tokenizer=NAME",
                      rules.said, ignore_merges ? ", ignore_merges" : ""));
    }
    if (whole_.has("normalizer")) {
      warn(fmt::format("texts are normalized before they are cut ({}), which llama.cpp leaves out",
                       whole_.child("normalizer").string("type")));
    }
    std::vector<std::string> merges;
    for (const auto& [left, right] : merges_) {
      if (left.find(' ') != left.npos || right.find(' ') != right.npos) {
        throw UsageError(
            fmt::format("{}: the merge of {} and {} has a space in it, so it is no byte-level tokenizer: "
                        "write the file for use by ids, --without-tokenizer",
                        file_.string(), io::in_quotes(left), io::in_quotes(right)));
      }
      merges.push_back(left + " " + right);
    }
    add("model", std::string("gpt2"));
    add("pre", !given.empty() ? given : rules.name.empty() ? std::string("default") : rules.name);
    add("merges", std::move(merges));
  }

  void write_pieces() {
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = ids_.find(byte_token(byte));
      if (found == ids_.end()) {
        throw UsageError(
            fmt::format("{}: it falls back to bytes, and has no token {}, which llama.cpp asks for: write "
                        "the file for use by ids, --without-tokenizer",
                        file_.string(), byte_token(byte)));
      }
      kinds_[static_cast<size_t>(found->second)] = kByte;
    }
    const TokenScores scores = token_scores(merges_, normal_tokens());
    if (scores.different > 0) {
      warn(fmt::format(
          "llama.cpp joins tokens by one score for each, and {} merges of this tokenizer are not in that "
          "order (the first is {} and {}): some words will be cut otherwise",
          scores.different, io::in_quotes(scores.first_different.first), io::in_quotes(scores.first_different.second)));
    }
    std::vector<float> of_tokens;
    for (const std::string& token : tokens_) {
      const auto found = scores.of.find(token);
      of_tokens.push_back(found == scores.of.end() ? kNeverJoined : found->second);
    }
    add("model", std::string("llama"));
    add("pre", std::string("default"));
    add("scores", std::move(of_tokens));
    add("add_space_prefix", puts_space_in_front());
  }

  std::vector<std::string> normal_tokens() const {
    std::vector<std::string> tokens;
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (kinds_[id] == kNormal) tokens.push_back(tokens_[id]);
    }
    return tokens;
  }

  bool puts_space_in_front() const {
    bool space = false;
    for (const io::JsonFile& step : steps("normalizer", "normalizers")) space |= step.string("type") == "Prepend";
    for (const io::JsonFile& step : steps("pre_tokenizer", "pretokenizers")) {
      space |= step.string("type") == "Metaspace" && text::read_prepend_scheme(step) != text::PrependScheme::kNever;
    }
    return space;
  }

  // Of a Sequence its members, else the one there is; none without the key.
  std::vector<io::JsonFile> steps(const std::string& key, const std::string& members) const {
    if (!whole_.has(key)) return {};
    const io::JsonFile one = whole_.child(key);
    return one.string("type") == "Sequence" ? text::read_steps(one, members, 0) : std::vector{one};
  }

  void add(const std::string& key, io::GgufValue value) {
    result_.metadata.emplace_back("tokenizer.ggml." + key, std::move(value));
  }
  void warn(const std::string& line) { result_.warnings.push_back(file_.string() + ": " + line); }

  fs::path folder_, file_;
  const Architecture& a_;
  int64_t top_id_;
  io::JsonFile whole_, model_;
  Vocabulary result_;
  std::vector<std::string> tokens_;
  std::vector<int32_t> kinds_;
  std::unordered_map<std::string, int64_t> ids_;
  std::vector<Merge> merges_;
};

}  // namespace

Vocabulary read_vocabulary(const fs::path& folder, const Architecture& architecture, const std::string& words) {
  return Writer(folder, architecture).written(words);
}

Vocabulary no_vocabulary() { return {{{"tokenizer.ggml.model", std::string("no_vocab")}}, {}}; }

}  // namespace limbeck::gguf
