// precision.rule's patterns against their definition, written as it is said and slow.
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "modules/precision/policy.h"

namespace limbeck::precision {
namespace {

using Segments = std::vector<std::string>;

bool segment_fits(const std::string& pattern, const std::string& text) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] != '*')
    return !text.empty() && text[0] == pattern[0] && segment_fits(pattern.substr(1), text.substr(1));
  return segment_fits(pattern.substr(1), text) || (!text.empty() && segment_fits(pattern, text.substr(1)));
}

bool fits(const Segments& pattern, const Segments& path) {
  if (pattern.empty()) return path.empty();
  const Segments rest(pattern.begin() + 1, pattern.end());
  const Segments below = path.empty() ? path : Segments(path.begin() + 1, path.end());
  if (pattern[0] == "**") return fits(rest, path) || (!path.empty() && fits(pattern, below));
  return !path.empty() && segment_fits(pattern[0], path[0]) && fits(rest, below);
}

// Every sequence of one to `longest` of these segments.
std::vector<Segments> all_of(const Segments& segments, size_t longest) {
  std::vector<Segments> found{{}};
  for (size_t begin = 0, length = 0; length < longest; ++length) {
    const size_t end = found.size();
    for (; begin < end; ++begin) {
      for (const std::string& segment : segments) {
        found.push_back(found[begin]);
        found.back().push_back(segment);
      }
    }
  }
  found.erase(found.begin());
  return found;
}

std::string joined(const Segments& segments) {
  std::string text;
  for (const std::string& segment : segments) text += (text.empty() ? "" : ".") + segment;
  return text;
}

TEST(RulePattern, MatchesWhatItsDefinitionSays) {
  size_t matched = 0, compared = 0;
  const auto paths = all_of({"a", "ab", "aba"}, 4);
  for (const Segments& pattern : all_of({"**", "*", "a*", "*b*", "a*a", "ab", "***"}, 3)) {
    for (const Segments& path : paths) {
      const bool wanted = fits(pattern, path);
      ASSERT_EQ(matches(joined(pattern), joined(path)), wanted) << joined(pattern) << " and " << joined(path);
      matched += wanted;
      ++compared;
    }
  }
  EXPECT_GT(matched, compared / 10);
  EXPECT_LT(matched, compared * 9 / 10);
}

TEST(RulePattern, TakesNoLongerForMoreStars) {
  std::string stars, runs;
  for (int i = 0; i < 3000; ++i) stars += "*a", runs += "**.";
  const std::string path = "student.layers.0.self_attn." + std::string(200, 'a');
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(matches("**." + stars, path));
    EXPECT_FALSE(matches(runs + "x", path));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

}  // namespace
}  // namespace limbeck::precision
