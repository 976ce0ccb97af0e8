#include "modules/text/normalizer.h"

#include <fmt/format.h>

#include <array>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/growth.h"
#include "modules/text/pattern.h"

namespace limbeck::text {
namespace {

template <typename Function>  // (std::string& out, char32_t character)
std::string each_character(std::string_view text, Function&& function) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) function(out, next_character(text, at));
  return out;
}

std::string without_accents(std::string_view text) {
  return each_character(text, [](std::string& out, char32_t c) {
    if (c < 0x80 || !is_in(CharacterSet::kNonspacingMark, c)) append(out, c);
  });
}

std::string cleaned(std::string_view text) {
  return each_character(text, [](std::string& out, char32_t c) {
    if (c == '\t' || c == '\n' || c == '\r' || is_in(CharacterSet::kWhitespace, c)) {
      if (c == 0x85 || c == 0xB || c == 0xC) return;  // a control character first
      out.push_back(' ');
    } else if (c != 0 && c != 0xFFFD && !is_in(CharacterSet::kControl, c)) {
      append(out, c);
    }
  });
}

Normalizer read_bert(const io::JsonFile& from) {
  const bool clean = from.boolean_or("clean_text", true), chinese = from.boolean_or("handle_chinese_chars", true);
  const bool lower = from.boolean_or("lowercase", true);
  const bool strip = from.boolean_or("strip_accents", lower);
  return [=](std::string text) {
    if (clean) text = cleaned(text);
    if (chinese) {
      text = each_character(text, [](std::string& out, char32_t c) {
        const bool apart = c >= 0x3400 && is_in(CharacterSet::kChinese, c);
        if (apart) out.push_back(' ');
        append(out, c);
        if (apart) out.push_back(' ');
      });
    }
    if (strip) text = without_accents(normal_form(text, NormalForm::kNfd));
    return lower ? lowercase(text) : text;
  };
}

std::string stripped(std::string_view text, bool left, bool right) {
  while (left && !text.empty()) {
    size_t at = 0;
    if (!is_in(CharacterSet::kWhitespace, next_character(text, at))) break;
    text.remove_prefix(at);
  }
  while (right && !text.empty()) {
    const char32_t last = last_character(text);
    if (!is_in(CharacterSet::kWhitespace, last)) break;
    std::string bytes;
    append(bytes, last);
    text.remove_suffix(bytes.size());
  }
  return std::string(text);
}

Normalizer read_replace(const io::JsonFile& from) {
  return [pattern = Pattern::read(from, "pattern"), content = from.string("content"),
          where = from.where()](const std::string& text) { return replace_all(text, pattern, content, where); };
}

Normalizer read_one_normalizer(const io::JsonFile& from) {
  const std::string type = from.string("type");
  const auto form = [](NormalForm f) { return [f](const std::string& text) { return normal_form(text, f); }; };
  if (type == "BertNormalizer") return read_bert(from);
  if (type == "Replace") return read_replace(from);
  if (type == "Lowercase") return [](const std::string& text) { return lowercase(text); };
  if (type == "NFC") return form(NormalForm::kNfc);
  if (type == "NFD") return form(NormalForm::kNfd);
  if (type == "NFKC") return form(NormalForm::kNfkc);
  if (type == "NFKD") return form(NormalForm::kNfkd);
  if (type == "StripAccents") return [](const std::string& text) { return without_accents(text); };
  if (type == "ByteLevel") return [](const std::string& text) { return bytes_as_text(text); };
  if (type == "Prepend") {
    return [start = from.string("prepend")](std::string text) { return text.empty() ? text : start + text; };
  }
  if (type == "Strip") {
    return [left = from.boolean_or("strip_left", true), right = from.boolean_or("strip_right", true)](
               const std::string& text) { return stripped(text, left, right); };
  }
  refuse_type(from,
              "Sequence, BertNormalizer, Replace, Prepend, Lowercase, NFC, NFD, NFKC, NFKD, Strip, StripAccents or "
              "ByteLevel");
}

// The steps of Sequences within Sequences in one row, so that all of them are held to the text that the first was
// given.
void add_normalizers(const io::JsonFile& from, int depth, std::vector<Normalizer>& steps) {
  if (from.string("type") != "Sequence") {
    steps.push_back(read_one_normalizer(from));
    return;
  }
  for (const io::JsonFile& step : read_steps(from, "normalizers", depth)) add_normalizers(step, depth + 1, steps);
}

}  // namespace

void refuse_type(const io::JsonFile& from, const std::string& known) {
  throw WeightsError(fmt::format("{}: key \"type\" = {}, which limbeck does not know: wanted {}", from.where(),
                                 io::in_quotes(from.string("type")), known));
}

std::vector<io::JsonFile> read_steps(const io::JsonFile& from, const std::string& key, int depth) {
  if (depth >= kMaxNesting) {
    throw WeightsError(fmt::format("{}: Sequences within Sequences, wanted at most {}", from.where(), kMaxNesting));
  }
  const auto found = from.value().find(key);
  if (found == from.value().end() || !found->is_array()) {
    throw WeightsError(fmt::format("{}: key \"{}\" is no list, wanted a list of objects", from.where(), key));
  }
  std::vector<io::JsonFile> steps;
  for (const auto& step : *found) {
    std::string where = fmt::format("{}: \"{}\"[{}]", from.where(), key, steps.size());
    if (!step.is_object()) throw WeightsError(where + ": wanted an object");
    steps.emplace_back(step, std::move(where));
  }
  if (steps.size() > 64) throw WeightsError(fmt::format("{}: {} steps, wanted at most 64", from.where(), steps.size()));
  return steps;
}

const std::string& byte_as_text(unsigned char byte) {
  static const std::array<std::string, 256> texts = [] {
    std::array<std::string, 256> made;
    char32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      append(made[b], itself ? b : next++);
    }
    return made;
  }();
  return texts[byte];
}

std::string bytes_as_text(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char byte : bytes) out += byte_as_text(static_cast<unsigned char>(byte));
  return out;
}

Normalizer read_normalizer(const io::JsonFile& from) {
  std::vector<Normalizer> steps;
  add_normalizers(from, 0, steps);
  return [steps = std::move(steps), where = from.where()](std::string text) {
    const size_t most = most_grown(text.size());
    for (const Normalizer& step : steps) {
      text = step(std::move(text));
      if (text.size() > most) refuse_growth(where, most);
    }
    return text;
  };
}

}  // namespace limbeck::text
