#include "modules/text/pre_tokenizer.h"

#include <fmt/format.h>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/growth.h"
#include "modules/text/normalizer.h"
#include "modules/text/pattern.h"

namespace limbeck::text {
namespace {

constexpr const char* kByteLevelWords = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

void split_into(Pieces& out, const Piece& piece, const Pattern& pattern, Behaviour behaviour, bool invert = false) {
  for (const Span& part : pattern.split(piece.text, behaviour, invert)) {
    out.push_back({piece.text.substr(part.begin, part.end - part.begin), piece.first && part.begin == 0});
  }
}

PreTokenizer splitting(Pattern pattern, Behaviour behaviour, bool invert = false) {
  return [pattern = std::move(pattern), behaviour, invert](const Pieces& pieces) {
    Pieces out;
    for (const Piece& piece : pieces) split_into(out, piece, pattern, behaviour, invert);
    return out;
  };
}

Pattern set_of(CharacterSet set) {
  return Pattern::characters([set](char32_t c) { return is_in(set, c); });
}

PreTokenizer read_byte_level(const io::JsonFile& from) {
  const bool add_space = from.boolean_or("add_prefix_space", true), words = from.boolean_or("use_regex", true);
  const Pattern pattern = words ? Pattern::regex(kByteLevelWords, from.where()) : Pattern::literal("");
  return [=](Pieces pieces) {
    if (add_space) {
      for (Piece& piece : pieces) {
        if (!piece.text.starts_with(' ')) piece.text.insert(0, 1, ' ');
      }
    }
    if (words) {
      Pieces cut;
      for (const Piece& piece : pieces) split_into(cut, piece, pattern, Behaviour::kIsolated);
      pieces = std::move(cut);
    }
    for (Piece& piece : pieces) piece.text = bytes_as_text(piece.text);
    return pieces;
  };
}

PreTokenizer read_metaspace(const io::JsonFile& from) {
  const std::string mark = read_character(from, "replacement", "\u2581");
  const PrependScheme scheme = read_prepend_scheme(from);
  const bool cut = from.boolean_or("split", true);
  return
      [=, where = from.where(), space = Pattern::literal(" "), at_mark = Pattern::literal(mark)](const Pieces& pieces) {
        Pieces out;
        for (const Piece& piece : pieces) {
          Piece marked{replace_all(piece.text, space, mark, where), piece.first};
          const bool wanted = scheme == PrependScheme::kAlways || (scheme == PrependScheme::kFirst && piece.first);
          if (wanted && !marked.text.starts_with(mark)) marked.text.insert(0, mark);
          if (cut)
            split_into(out, marked, at_mark, Behaviour::kMergedWithNext);
          else
            out.push_back(std::move(marked));
        }
        return out;
      };
}

size_t total_bytes(const Pieces& pieces) {
  size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.text.size();
  return bytes;
}

PreTokenizer in_turn(std::vector<PreTokenizer> steps, const std::string& where) {
  return [steps = std::move(steps), where](Pieces pieces) {
    const size_t most = most_grown(total_bytes(pieces));
    for (const PreTokenizer& step : steps) {
      pieces = step(std::move(pieces));
      if (total_bytes(pieces) > most) refuse_growth(where, most);
    }
    return pieces;
  };
}

// Runs of letters, and runs of what is neither letter nor space.
PreTokenizer whitespace() {
  return [](const Pieces& pieces) {
    enum Kind { kSpace, kWords, kOther };
    Pieces out;
    for (const Piece& piece : pieces) {
      Kind previous = kSpace;
      for (size_t at = 0; at < piece.text.size();) {
        const size_t begin = at;
        const char32_t c = next_character(piece.text, at);
        const Kind kind = is_in(CharacterSet::kWord, c)         ? kWords
                          : is_in(CharacterSet::kWhitespace, c) ? kSpace
                                                                : kOther;
        if (kind != kSpace && kind != previous) out.push_back({"", piece.first && begin == 0});
        if (kind != kSpace) out.back().text.append(piece.text, begin, at - begin);
        previous = kind;
      }
    }
    return out;
  };
}

PreTokenizer read_one_pre_tokenizer(const io::JsonFile& from) {
  const std::string type = from.string("type");
  if (type == "ByteLevel") return read_byte_level(from);
  if (type == "Metaspace") return read_metaspace(from);
  if (type == "Whitespace") return whitespace();
  if (type == "WhitespaceSplit") return splitting(set_of(CharacterSet::kWhitespace), Behaviour::kRemoved);
  if (type == "BertPreTokenizer") {
    return in_turn({splitting(set_of(CharacterSet::kWhitespace), Behaviour::kRemoved),
                    splitting(set_of(CharacterSet::kPunctuation), Behaviour::kIsolated)},
                   from.where());
  }
  if (type == "Split") {
    return splitting(Pattern::read(from, "pattern"), read_behaviour(from, "behavior"),
                     from.boolean_or("invert", false));
  }
  if (type == "Punctuation") {
    const bool said = from.has("behavior");
    return splitting(set_of(CharacterSet::kPunctuation),
                     said ? read_behaviour(from, "behavior") : Behaviour::kIsolated);
  }
  if (type == "Digits") {
    return splitting(set_of(CharacterSet::kNumeric),
                     from.boolean_or("individual_digits", false) ? Behaviour::kIsolated : Behaviour::kContiguous);
  }
  if (type == "CharDelimiterSplit") {
    return splitting(Pattern::literal(read_character(from, "delimiter", "")), Behaviour::kRemoved);
  }
  refuse_type(from,
              "Sequence, ByteLevel, Metaspace, Split, Whitespace, WhitespaceSplit, BertPreTokenizer, Punctuation, "
              "Digits or CharDelimiterSplit");
}

// As the normalizer's: the steps of Sequences within Sequences in one row.
void add_pre_tokenizers(const io::JsonFile& from, int depth, std::vector<PreTokenizer>& steps) {
  if (from.string("type") != "Sequence") {
    steps.push_back(read_one_pre_tokenizer(from));
    return;
  }
  for (const io::JsonFile& step : read_steps(from, "pretokenizers", depth)) add_pre_tokenizers(step, depth + 1, steps);
}

}  // namespace

PrependScheme read_prepend_scheme(const io::JsonFile& from) {
  // Before the scheme there was only add_prefix_space.
  if (!from.has("prepend_scheme")) {
    return from.boolean_or("add_prefix_space", true) ? PrependScheme::kAlways : PrependScheme::kNever;
  }
  const std::string word = from.string("prepend_scheme");
  if (word == "always") return PrependScheme::kAlways;
  if (word == "first") return PrependScheme::kFirst;
  if (word == "never") return PrependScheme::kNever;
  throw WeightsError(
      fmt::format("{}: key \"prepend_scheme\" = {}, wanted always, first or never", from.where(), io::in_quotes(word)));
}

std::string read_character(const io::JsonFile& from, const std::string& key, const std::string& fallback) {
  const std::string found = from.string_or(key, fallback);
  if (count_characters(found) == 1) return found;
  throw WeightsError(fmt::format("{}: key \"{}\" = {}, wanted one character", from.where(), key, io::in_quotes(found)));
}

PreTokenizer read_pre_tokenizer(const io::JsonFile& from) {
  std::vector<PreTokenizer> steps;
  add_pre_tokenizers(from, 0, steps);
  return in_turn(std::move(steps), from.where());
}

}  // namespace limbeck::text
