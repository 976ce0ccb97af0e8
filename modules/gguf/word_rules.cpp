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

}  // namespace limbeck::gguf
