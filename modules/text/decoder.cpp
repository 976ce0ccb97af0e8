#include "modules/text/decoder.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <unordered_map>

#include "modules/errors.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/normalizer.h"
#include "modules/text/pattern.h"
#include "modules/text/pre_tokenizer.h"

namespace limbeck::text {
namespace {

// Whole tokens to whole tokens: parts of one are gathered until the next begins.
class TokenStage : public DecodeStage {
 public:
  using Change = std::function<std::string(std::string token, bool first, bool last)>;
  TokenStage(Change change, bool wants_last) : change_(std::move(change)), wants_last_(wants_last) {}

  void push(Part part, const Sink& out) override {
    if (part.begins) give(out, false);
    if (part.begins || !held_) held_.emplace();
    *held_ += part.text;
    // A stage that looks at one token alone need not wait; the parts of a fused text must.
    if (part.begins && !wants_last_ && !fused_) give(out, false);
  }
  void finish(const Sink& out) override { give(out, true); }
  void expect_fused() { fused_ = true; }

 private:
  void give(const Sink& out, bool last) {
    if (!held_) return;
    std::string token = std::move(*held_);
    held_.reset();
    out({change_(std::move(token), first_, last), true});
    first_ = false;
  }

  Change change_;
  bool wants_last_, fused_ = false, first_ = true;
  std::optional<std::string> held_;
};

class Fuse : public DecodeStage {
 public:
  void push(Part part, const Sink& out) override {
    out({std::move(part.text), first_});
    first_ = false;
  }
  void finish(const Sink& out) override {
    if (first_) out({"", true});
  }

 private:
  bool first_ = true;
};

// Characters that stand for bytes, to the text of these bytes.
class ByteLevelStage : public DecodeStage {
 public:
  void push(Part part, const Sink& out) override {
    bytes_ += bytes_of(part.text);
    out({take_lossy(bytes_, true), first_});
    first_ = false;
  }
  void finish(const Sink& out) override { out({take_lossy(bytes_, false), first_}); }

 private:
  static std::string bytes_of(const std::string& token) {
    static const std::unordered_map<char32_t, char> byte_by_character = [] {
      std::unordered_map<char32_t, char> made;
      for (int byte = 0; byte < 256; ++byte) {
        const std::string& text = byte_as_text(static_cast<unsigned char>(byte));
        made.emplace(last_character(text), static_cast<char>(static_cast<unsigned char>(byte)));
      }
      return made;
    }();
    std::string bytes;
    for (size_t at = 0; at < token.size();) {
      const auto found = byte_by_character.find(next_character(token, at));
      if (found == byte_by_character.end()) return token;
      bytes.push_back(found->second);
    }
    return bytes;
  }

  std::string bytes_;
  bool first_ = true;
};

// <0xE2> and the like, gathered until another token ends the run: valid UTF-8 as it is, else U+FFFD for each byte.
class ByteFallbackStage : public DecodeStage {
 public:
  void push(Part part, const Sink& out) override {
    if (const auto byte = byte_of(part.text)) {
      run_.push_back(*byte);
      return;
    }
    finish(out);
    out(std::move(part));
  }
  void finish(const Sink& out) override {
    if (run_.empty()) return;
    std::string text = run_;
    if (utf8_fault(run_) != std::string::npos) {
      text.clear();
      for (size_t i = 0; i < run_.size(); ++i) append(text, 0xFFFD);
    }
    run_.clear();
    out({std::move(text), true});
  }

 private:
  static std::optional<char> byte_of(const std::string& token) {
    if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with(">")) return std::nullopt;
    unsigned value = 0;
    const char* begin = token.data() + 3 + (token[3] == '+' ? 1 : 0);
    const auto [end, fault] = std::from_chars(begin, token.data() + 5, value, 16);
    if (fault != std::errc() || end != token.data() + 5) return std::nullopt;
    return static_cast<char>(static_cast<unsigned char>(value));
  }

  std::string run_;
};

// Takes up to `most` of a character from the start of a fused text, and lets the rest flow.
class StripStart : public DecodeStage {
 public:
  StripStart(std::string character, size_t most) : character_(std::move(character)), most_(most) {}
  void push(Part part, const Sink& out) override {
    if (part.begins) left_ = most_;
    std::string_view text = part.text;
    while (left_ > 0 && text.starts_with(character_)) text.remove_prefix(character_.size()), --left_;
    if (!text.empty()) left_ = 0;
    out({std::string(text), part.begins});
  }
  void finish(const Sink&) override {}

 private:
  std::string character_;
  size_t most_, left_ = 0;
};

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  std::string out;
  size_t done = 0;
  for (size_t at = text.find(from); at != text.npos; at = text.find(from, done)) {
    out.append(text, done, at - done).append(to);
    done = at + from.size();
  }
  return out.append(text, done);
}

std::string without_english_gaps(std::string text) {
  constexpr std::pair<const char*, const char*> kGaps[] = {
      {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kGaps) text = replaced(std::move(text), from, to);
  return text;
}

template <typename Make>
DecodePlan one(Make make) {
  return [make = std::move(make)] {
    std::vector<std::unique_ptr<DecodeStage>> stages;
    stages.push_back(make());
    return stages;
  };
}

DecodePlan tokens_by(TokenStage::Change change, bool wants_last = false) {
  return one([=] { return std::make_unique<TokenStage>(change, wants_last); });
}

DecodePlan read_word_piece(const io::JsonFile& from) {
  const std::string prefix = from.string_or("prefix", "##");
  const bool cleanup = from.boolean_or("cleanup", true);
  return tokens_by([=](std::string token, bool first, bool) {
    if (!first) {
      if (token.starts_with(prefix))
        token.erase(0, prefix.size());
      else
        token.insert(0, 1, ' ');
    }
    return cleanup ? without_english_gaps(std::move(token)) : token;
  });
}

DecodePlan read_metaspace_decoder(const io::JsonFile& from) {
  const std::string mark = read_character(from, "replacement", "\u2581");
  const bool drops = read_prepend_scheme(from) != PrependScheme::kNever;
  return tokens_by(
      [=](std::string token, bool first, bool) { return replaced(std::move(token), mark, first && drops ? "" : " "); });
}

DecodePlan read_strip(const io::JsonFile& from) {
  const std::string character = read_character(from, "content", " ");
  const auto start = static_cast<size_t>(from.integer_or("start", 0, 0, 1 << 20));
  const auto stop = static_cast<size_t>(from.integer_or("stop", 0, 0, 1 << 20));
  if (stop == 0) return one([=] { return std::make_unique<StripStart>(character, start); });
  return tokens_by([=](const std::string& token, bool, bool) {
    std::string_view text = token;
    for (size_t i = 0; i < start && text.starts_with(character); ++i) text.remove_prefix(character.size());
    for (size_t i = 0; i < stop && text.ends_with(character); ++i) text.remove_suffix(character.size());
    return std::string(text);
  });
}

DecodePlan read_decoders(const io::JsonFile& from, int depth) {
  std::vector<DecodePlan> plans;
  for (const io::JsonFile& step : read_steps(from, "decoders", depth)) plans.push_back(read_decoder(step, depth + 1));
  return [plans = std::move(plans)] {
    std::vector<std::unique_ptr<DecodeStage>> stages;
    bool fused = false;
    for (const DecodePlan& plan : plans) {
      for (auto& stage : plan()) {
        if (auto* tokens = dynamic_cast<TokenStage*>(stage.get()); tokens != nullptr && fused) tokens->expect_fused();
        fused = fused || dynamic_cast<Fuse*>(stage.get()) != nullptr ||
                dynamic_cast<ByteLevelStage*>(stage.get()) != nullptr;
        stages.push_back(std::move(stage));
      }
    }
    return stages;
  };
}

}  // namespace

DecodePlan read_decoder(const io::JsonFile& from, int depth) {
  const std::string type = from.string("type");
  if (type == "Sequence") return read_decoders(from, depth);
  if (type == "ByteLevel") return one([] { return std::make_unique<ByteLevelStage>(); });
  if (type == "ByteFallback") return one([] { return std::make_unique<ByteFallbackStage>(); });
  if (type == "Fuse") return one([] { return std::make_unique<Fuse>(); });
  if (type == "Strip") return read_strip(from);
  if (type == "Metaspace") return read_metaspace_decoder(from);
  if (type == "WordPiece") return read_word_piece(from);
  if (type == "Replace") {
    return tokens_by([pattern = Pattern::read(from, "pattern"), content = from.string("content"), where = from.where()](
                         const std::string& token, bool, bool) { return replace_all(token, pattern, content, where); });
  }
  if (type == "BPEDecoder") {
    const std::string suffix = from.string_or("suffix", "</w>");
    if (suffix.empty()) throw WeightsError(from.where() + ": key \"suffix\" is empty");
    return tokens_by(
        [=](std::string token, bool, bool last) { return replaced(std::move(token), suffix, last ? "" : " "); }, true);
  }
  refuse_type(from, "Sequence, ByteLevel, ByteFallback, Fuse, Strip, Replace, Metaspace, WordPiece or BPEDecoder");
}

}  // namespace limbeck::text
