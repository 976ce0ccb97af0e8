#include "modules/gguf/word_rules.h"

#include <vector>

#include "modules/text/normalizer.h"

namespace limbeck::gguf {
namespace {

constexpr const char* kLlama3Words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwenWords =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekkenWords =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char *kWords = "GPT-2's words", *kBytes = "bytes", *kDigits = "single digits";

// One step of the pre-tokenizer as a text, alike where the steps are.
std::string text_of(const io::JsonFile& step) {
  const std::string type = step.string("type");
  if (type == "ByteLevel") {
    const char* space = step.boolean_or("add_prefix_space", true) ? " with a space in front" : "";
    return std::string(step.boolean_or("use_regex", true) ? kWords : kBytes) + space;
  }
  if (type == "Digits" && step.boolean_or("individual_digits", false)) return kDigits;
  const bool isolated = step.string_or("behavior", "") == "Isolated" && !step.boolean_or("invert", false);
  const bool split = type == "Split" && isolated && step.has("pattern") && step.child("pattern").has("Regex");
  return split ? step.child("pattern").string("Regex") : type;
}

// The other way round.
nlohmann::json step_of(const std::string& text) {
  if (text == kDigits) return {{"type", "Digits"}, {"individual_digits", true}};
  if (text == kWords || text == kBytes) {
    return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", text == kWords}};
  }
  return {{"type", "Split"}, {"pattern", {{"Regex", text}}}, {"behavior", "Isolated"}, {"invert", false}};
}

std::vector<std::string> steps_of(const io::JsonFile& pre_tokenizer) {
  if (pre_tokenizer.string("type") != "Sequence") return {text_of(pre_tokenizer)};
  std::vector<std::string> steps;
  for (const io::JsonFile& step : text::read_steps(pre_tokenizer, "pretokenizers", 0)) steps.push_back(text_of(step));
  return steps;
}

struct Rule {
  std::vector<std::string> steps;
  bool ignore_merges;
  const char* name;
};

const std::vector<Rule>& rules() {
  static const std::vector<Rule> all = {{{kWords}, false, "gpt-2"},
                                        {{kDigits, kWords}, false, "smollm"},
                                        {{kLlama3Words, kBytes}, true, "llama-bpe"},
                                        {{kLlama3Words, kBytes}, false, "smaug-bpe"},
                                        {{kQwenWords, kBytes}, false, "qwen2"},
                                        {{kTekkenWords, kBytes}, true, "tekken"}};
  return all;
}

// What llama.cpp treats as the same rule under another name.
constexpr std::pair<const char*, const char*> kSynonyms[] = {{"llama3", "llama-bpe"}, {"llama-v3", "llama-bpe"},
                                                             {"phi-2", "gpt-2"},      {"deepseek-r1-qwen", "qwen2"},
                                                             {"starcoder", "smollm"}, {"refact", "smollm"}};

}  // namespace

WordRules word_rules(const io::JsonFile& tokenizer, bool ignore_merges) {
  const std::vector<std::string> steps = steps_of(tokenizer.child("pre_tokenizer"));
  WordRules result;
  for (const std::string& step : steps) result.said += (result.said.empty() ? "" : ", then ") + step;
  for (const Rule& rule : rules()) {
    if (rule.steps == steps && rule.ignore_merges == ignore_merges) result.name = rule.name;
  }
  return result;
}

std::optional<NamedWords> named_words(const std::string& name) {
  std::string own = name;
  for (const auto& [synonym, rule] : kSynonyms) {
    if (name == synonym) own = rule;
  }
  for (const Rule& rule : rules()) {
    if (rule.name != own) continue;
    nlohmann::json steps = nlohmann::json::array();
    for (const std::string& step : rule.steps) steps.push_back(step_of(step));
    const nlohmann::json all = {{"type", "Sequence"}, {"pretokenizers", steps}};
    return NamedWords{steps.size() == 1 ? steps[0] : all, rule.ignore_merges, own == "llama-bpe"};
  }
  return std::nullopt;
}

std::vector<std::string> known_words() {
  std::vector<std::string> names;
  for (const Rule& rule : rules()) names.emplace_back(rule.name);
  for (const auto& [synonym, rule] : kSynonyms) names.emplace_back(synonym);
  return names;
}

}  // namespace limbeck::gguf
