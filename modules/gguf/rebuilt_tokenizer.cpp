#include "modules/gguf/rebuilt_tokenizer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <optional>
#include <unordered_map>

#include "modules/errors.h"
#include "modules/gguf/token_kind.h"
#include "modules/gguf/token_scores.h"
#include "modules/gguf/word_rules.h"
#include "modules/io/tensor_name.h"
#include "modules/models/family/config_reader.h"

namespace limbeck::gguf {
namespace {

using nlohmann::json;

constexpr const char* kUnderline = "\u2581";  // SentencePiece's space
constexpr size_t kLongestPiece = 1024;        // in bytes; each has a pair for each of its characters
constexpr const char* kPrefix = "tokenizer.ggml.";

class Rebuilder {
 public:
  Rebuilder(const io::GgufReader& file, int64_t rows) : said_(file.metadata()), where_(said_.where()), rows_(rows) {}

  RebuiltTokenizer rebuilt(const std::string& words) {
    const std::string model = said_.string_or(key("model"), "no_vocab");
    if (model == "no_vocab" || model == "none") return without("the file has no tokenizer");
    if (model != "gpt2" && model != "llama") {
      return without(
          fmt::format("its tokenizer is llama.cpp's {}, and gpt2 and llama alone are rebuilt", io::in_quotes(model)));
    }
    const bool pieces = model == "llama";
    const std::string name = !words.empty() ? words : said_.string_or(key("pre"), "default");
    const auto rule = named_words(name);
    if (!pieces && !rule) {
      return without(
          fmt::format("how its tokenizer cuts a text is called {} in llama.cpp, and known are {} "
                      "(--pre-tokenizer=NAME where you know that one of these is the same)",
                      io::in_quotes(name), fmt::join(known_words(), ", ")));
    }
    read_tokens();
    result_.tokenizer = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
    result_.tokenizer["added_tokens"] = added_;
    if (pieces)
      write_pieces();
    else
      write_byte_level(*rule);
    write_frame(pieces || (rule && rule->begins_by_default));
    write_config();
    return std::move(result_);
  }

 private:
  static std::string key(const std::string& name) { return kPrefix + name; }

  [[noreturn]] void refuse(const std::string& name, const std::string& what) const {
    throw WeightsError(fmt::format("{}: key \"{}{}\" {}", where_, kPrefix, name, what));
  }

  RebuiltTokenizer without(const std::string& why) {
    result_.warnings.push_back(fmt::format(
        "{}: {}: the folder has no tokenizer, and is used by ids until the model's own tokenizer.json lies in it",
        where_, why));
    return std::move(result_);
  }

  // An array of the metadata; `wanted`: its length, 0 for any.
  const json& array(const std::string& name, size_t wanted) const {
    if (!said_.has(key(name))) refuse(name, "is missing");
    const json& found = said_.value().at(key(name));
    if (!found.is_array()) refuse(name, "is no array");
    if (wanted > 0 && found.size() != wanted)
      refuse(name, fmt::format("has {} items, wanted one for each of {} tokens", found.size(), wanted));
    return found;
  }

  const std::string& text_at(const json& all, size_t i, const std::string& name) const {
    if (!all[i].is_string()) refuse(name, fmt::format("[{}] is {}, wanted a text", i, all[i].dump()));
    return all[i].get_ref<const std::string&>();
  }

  void read_tokens() {
    const json& tokens = array("tokens", 0);
    if (tokens.empty() || tokens.size() > static_cast<size_t>(rows_))
      refuse("tokens", fmt::format("has {} items, and the model {} rows of embeddings", tokens.size(), rows_));
    const bool typed = said_.has(key("token_type"));
    const json* kinds = typed ? &array("token_type", tokens.size()) : nullptr;
    for (size_t id = 0; id < tokens.size(); ++id) {
      const std::string& token = text_at(tokens, id, "tokens");
      const int32_t kind = kinds == nullptr ? kNormal : kind_at(*kinds, id);
      kinds_.push_back(kind);
      texts_.push_back(token);
      if (kind == kUnused || token.empty()) continue;
      if (!ids_.emplace(token, id).second) {
        refuse("tokens", fmt::format("[{}] = {} is [{}] too", id, io::in_quotes(token), ids_.at(token)));
      }
      vocabulary_[token] = id;
      const bool special = kind == kControl || kind == kUnknown;
      if (special || kind == kUserDefined) {
        added_.push_back({{"id", id},
                          {"content", token},
                          {"single_word", false},
                          {"lstrip", false},
                          {"rstrip", false},
                          {"normalized", false},
                          {"special", special}});
      }
    }
  }

  int32_t kind_at(const json& kinds, size_t id) const {
    const json& kind = kinds[id];
    if (!kind.is_number_integer() || kind < json(kNormal) || kind > json(kByte))
      refuse("token_type", fmt::format("[{}] is {}, wanted 1 to 6", id, kind.dump()));
    return kind.get<int32_t>();
  }

  void write_byte_level(const NamedWords& rule) {
    const json& merges = array("merges", 0);
    json pairs = json::array();
    for (size_t i = 0; i < merges.size(); ++i) {
      const std::string& both = text_at(merges, i, "merges");
      const size_t space = both.find(' ', 1);
      const std::string left = both.substr(0, space), right = space == both.npos ? "" : both.substr(space + 1);
      for (const std::string& part : {left, right, left + right}) {
        if (ids_.contains(part)) continue;
        refuse("merges",
               fmt::format("[{}] = {} needs {}, which is no token", i, io::in_quotes(both), io::in_quotes(part)));
      }
      pairs.push_back({left, right});
    }
    result_.tokenizer["normalizer"] = nullptr;
    result_.tokenizer["pre_tokenizer"] = rule.pre_tokenizer;
    result_.tokenizer["decoder"] = {
        {"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    json model = plain_model(std::move(pairs));
    model["ignore_merges"] = rule.ignore_merges;
    result_.tokenizer["model"] = std::move(model);
  }

  json plain_model(json merges) const {
    return {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocabulary_},
            {"merges", std::move(merges)}};
  }

  void write_pieces() {
    const json& scores = array("scores", texts_.size());
    std::vector<std::pair<std::string, float>> joined;
    std::unordered_map<std::string, int64_t> parts;
    for (size_t id = 0; id < texts_.size(); ++id) {
      if (!scores[id].is_number() || std::isnan(scores[id].get<float>()))
        refuse("scores", fmt::format("[{}] is {}, wanted a number", id, scores[id].dump()));
      if (kinds_[id] != kNormal || texts_[id].empty()) continue;
      if (texts_[id].size() > kLongestPiece)
        refuse("tokens", fmt::format("[{}] has {} bytes, at most {} are read", id, texts_[id].size(), kLongestPiece));
      parts.emplace(texts_[id], id);
      const auto score = scores[id].get<float>();
      if (score > kNeverJoined) joined.emplace_back(texts_[id], score);
    }
    const ScoredMerges found = merges_of_scores(joined, parts);
    if (found.ties > 0) {
      warn(
          fmt::format("{} tokens have the score of another one, of which llama.cpp joins the one further to the left "
                      "first, and the tokenizer that is written the one with the smaller id",
                      found.ties));
    }
    json pairs = json::array();
    for (const auto& [left, right] : found.merges) pairs.push_back({left, right});
    json model = plain_model(std::move(pairs));
    model["fuse_unk"] = model["byte_fallback"] = true;
    if (const auto unknown = id_of("unknown_token_id")) model["unk_token"] = texts_[*unknown];
    result_.tokenizer["model"] = std::move(model);
    const bool space = said_.boolean_or(key("add_space_prefix"), true);
    const json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kUnderline}};
    json steps = json::array();
    if (space) steps.push_back({{"type", "Prepend"}, {"prepend", kUnderline}});
    steps.push_back(replace);
    result_.tokenizer["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
    result_.tokenizer["pre_tokenizer"] = nullptr;
    json decoders = {{{"type", "Replace"}, {"pattern", {{"String", kUnderline}}}, {"content", " "}},
                     {{"type", "ByteFallback"}},
                     {{"type", "Fuse"}}};
    if (space) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    result_.tokenizer["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  }

  // The token that a key names.
  std::optional<size_t> id_of(const std::string& name) const {
    if (!said_.has(key(name))) return std::nullopt;
    const auto id = static_cast<size_t>(said_.integer(key(name), 0, static_cast<int64_t>(texts_.size()) - 1));
    if (!ids_.contains(texts_[id])) refuse(name, fmt::format("= {}, which is no token that is used", id));
    return id;
  }

  // What stands around a text.
  void write_frame(bool begins_by_default) {
    const auto begin = id_of("bos_token_id"), end = id_of("eos_token_id");
    const bool begins = said_.boolean_or(key("add_bos_token"), begins_by_default) && begin;
    const bool ends = said_.boolean_or(key("add_eos_token"), false) && end;
    result_.tokenizer["post_processor"] = nullptr;
    if (!begins && !ends) return;
    json single = json::array(), pair = json::array(), specials = json::object();
    const auto token = [&](size_t id, int type) -> json {
      specials[texts_[id]] = {{"id", texts_[id]}, {"ids", {id}}, {"tokens", {texts_[id]}}};
      return {{"SpecialToken", {{"id", texts_[id]}, {"type_id", type}}}};
    };
    for (int text = 0; text < 2; ++text) {
      json framed = json::array();
      if (begins) framed.push_back(token(*begin, text));
      framed.push_back({{"Sequence", {{"id", text == 0 ? "A" : "B"}, {"type_id", text}}}});
      if (ends) framed.push_back(token(*end, text));
      if (text == 0) single = framed;
      pair.insert(pair.end(), framed.begin(), framed.end());
    }
    result_.tokenizer["post_processor"] = {
        {"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
  }

  void write_config() {
    json& config = result_.config;
    config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
    const std::pair<const char*, const char*> named[] = {{"bos_token", "bos_token_id"},
                                                         {"eos_token", "eos_token_id"},
                                                         {"unk_token", "unknown_token_id"},
                                                         {"pad_token", "padding_token_id"}};
    for (const auto& [ours, theirs] : named) {
      if (const auto id = id_of(theirs)) config[ours] = texts_[*id];
    }
    const std::string length = said_.string("general.architecture") + ".context_length";
    if (said_.has(length)) config["model_max_length"] = said_.integer(length, 1, models::kMaxSize);
    const std::string chats = said_.string_or("tokenizer.chat_template", "");
    if (!chats.empty()) config["chat_template"] = chats;
  }

  void warn(const std::string& line) { result_.warnings.push_back(where_ + ": " + line); }

  const io::JsonFile& said_;
  std::string where_;
  int64_t rows_;
  RebuiltTokenizer result_;
  std::vector<std::string> texts_;
  std::vector<int32_t> kinds_;
  std::unordered_map<std::string, int64_t> ids_;  // of those that are used
  json vocabulary_ = json::object(), added_ = json::array();
};

}  // namespace

RebuiltTokenizer rebuild_tokenizer(const io::GgufReader& file, int64_t rows, const std::string& words) {
  return Rebuilder(file, rows).rebuilt(words);
}

}  // namespace limbeck::gguf
