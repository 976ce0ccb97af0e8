// Where a text is cut: a literal, a regular expression (Oniguruma, as in Hugging Face's tokenizers) or a character set,
// and what becomes of the places that match. A stranger's regular expression is held to a number of steps and a time.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "modules/io/json_file.h"

namespace limbeck::text {

struct Span {
  size_t begin = 0, end = 0;
  bool matched = false;
};

enum class Behaviour { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
Behaviour read_behaviour(const io::JsonFile& from, const std::string& key);

class Pattern {
 public:
  static Pattern literal(std::string text);
  static Pattern regex(const std::string& expression, const std::string& where);
  static Pattern characters(std::function<bool(char32_t)> belongs);
  // {"String": "..."} or {"Regex": "..."}
  static Pattern read(const io::JsonFile& from, const std::string& key);

  // The whole text in order, what matches and what stands between.
  std::vector<Span> find(std::string_view text) const;
  // The parts that remain after a split, none of them empty.
  std::vector<Span> split(std::string_view text, Behaviour behaviour, bool invert = false) const;

 private:
  std::function<void(std::string_view, std::vector<Span>&)> matches_;  // appends the matches only
};

// `text` with every match replaced. `where` is named when it would grow past all measure.
std::string replace_all(std::string_view text, const Pattern& pattern, const std::string& content,
                        const std::string& where);

}  // namespace limbeck::text
