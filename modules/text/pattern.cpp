#include "modules/text/pattern.h"

#include <fmt/format.h>
#include <oniguruma.h>

#include <algorithm>
#include <chrono>
#include <mutex>

#include "modules/errors.h"
#include "modules/io/tensor_name.h"
#include "modules/text/characters/unicode.h"
#include "modules/text/growth.h"

namespace limbeck::text {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxExpressionBytes = 8192;
constexpr unsigned kMaxStack = 1 << 20;             // Oniguruma's entries for one match
constexpr unsigned long kMaxSteps = 10'000'000;     // a tenth of a second or so, for one match
constexpr auto kMaxTime = std::chrono::seconds(5);  // for one text, and a second more for each MiB of it

const UChar* bytes_of(const char* text) { return reinterpret_cast<const UChar*>(text); }

std::string onig_message(int code, OnigErrorInfo* info = nullptr) {
  UChar buffer[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int length = onig_error_code_to_str(buffer, code, info);
  return {reinterpret_cast<const char*>(buffer), static_cast<size_t>(std::max(length, 0))};
}

void start_onig() {
  static std::once_flag once;
  std::call_once(once, [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    onig_initialize(encodings, 1);
    size_t count = 0;
    const Property* properties = known_properties(count);
    for (size_t i = 0; i < count; ++i) {
      // Oniguruma looks names up as they are written, and keeps the ranges where they lie.
      onig_unicode_define_user_property(properties[i].name, const_cast<OnigCodePoint*>(properties[i].ranges));
    }
  });
}

class Expression {
 public:
  Expression(const std::string& text, std::string where) : where_(std::move(where)), shown_(io::in_quotes(text)) {
    start_onig();
    if (text.size() > kMaxExpressionBytes) {
      throw WeightsError(fmt::format("{}: a regular expression of {} bytes, at most {} are read", where_, text.size(),
                                     kMaxExpressionBytes));
    }
    OnigErrorInfo info{};
    const UChar* begin = bytes_of(text.data());
    const int code = onig_new(&regex_, begin, begin + text.size(), ONIG_OPTION_NONE, ONIG_ENCODING_UTF8,
                              ONIG_SYNTAX_ONIGURUMA, &info);
    if (code != ONIG_NORMAL) {
      throw WeightsError(
          fmt::format("{}: regular expression {}: {}", where_, shown_, io::in_quotes(onig_message(code, &info))));
    }
    limits_ = onig_new_match_param();
    onig_initialize_match_param(limits_);
    onig_set_match_stack_limit_size_of_match_param(limits_, kMaxStack);
    onig_set_retry_limit_in_match_of_match_param(limits_, kMaxSteps);
    onig_set_retry_limit_in_search_of_match_param(limits_, kMaxSteps);
  }
  ~Expression() {
    if (limits_ != nullptr) onig_free_match_param(limits_);
    if (regex_ != nullptr) onig_free(regex_);
  }
  Expression(const Expression&) = delete;
  Expression& operator=(const Expression&) = delete;

  void find(std::string_view text, std::vector<Span>& found) const {
    const auto deadline = Clock::now() + kMaxTime + std::chrono::seconds(text.size() >> 20);
    const UChar* begin = bytes_of(text.data());
    const UChar* end = begin + text.size();
    const std::unique_ptr<OnigRegion, void (*)(OnigRegion*)> region(onig_region_new(),
                                                                    [](OnigRegion* r) { onig_region_free(r, 1); });
    size_t from = 0, last = std::string_view::npos;
    for (size_t searches = 0; from <= text.size(); ++searches) {
      if (searches % 16 == 15 && Clock::now() > deadline) refuse("takes too long for this text");
      const int at =
          onig_search_with_param(regex_, begin, end, begin + from, end, region.get(), ONIG_OPTION_NONE, limits_);
      if (at == ONIG_MISMATCH) return;
      if (at < 0) refuse(onig_message(at));
      const auto first = static_cast<size_t>(region->beg[0]), behind = static_cast<size_t>(region->end[0]);
      if (first == behind && behind == last) {  // an empty match right after a match: one character on
        if (from == text.size()) return;
        next_character(text, from);
        continue;
      }
      from = last = behind;
      found.push_back({first, behind, true});
    }
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw WeightsError(fmt::format("{}: regular expression {}: {}", where_, shown_, what));
  }

  std::string where_, shown_;
  regex_t* regex_ = nullptr;
  OnigMatchParam* limits_ = nullptr;
};

}  // namespace

Behaviour read_behaviour(const io::JsonFile& from, const std::string& key) {
  const std::string word = from.string(key);
  if (word == "Removed") return Behaviour::kRemoved;
  if (word == "Isolated") return Behaviour::kIsolated;
  if (word == "MergedWithPrevious") return Behaviour::kMergedWithPrevious;
  if (word == "MergedWithNext") return Behaviour::kMergedWithNext;
  if (word == "Contiguous") return Behaviour::kContiguous;
  throw WeightsError(
      fmt::format("{}: key \"{}\" = {}, wanted Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous",
                  from.where(), key, io::in_quotes(word)));
}

Pattern Pattern::literal(std::string wanted) {
  Pattern pattern;
  pattern.matches_ = [wanted = std::move(wanted)](std::string_view text, std::vector<Span>& found) {
    if (wanted.empty()) return;
    for (size_t at = text.find(wanted); at != text.npos; at = text.find(wanted, at + wanted.size())) {
      found.push_back({at, at + wanted.size(), true});
    }
  };
  return pattern;
}

Pattern Pattern::regex(const std::string& expression, const std::string& where) {
  Pattern pattern;
  pattern.matches_ = [compiled = std::make_shared<const Expression>(expression, where)](
                         std::string_view text, std::vector<Span>& found) { compiled->find(text, found); };
  return pattern;
}

Pattern Pattern::characters(std::function<bool(char32_t)> belongs) {
  Pattern pattern;
  pattern.matches_ = [belongs = std::move(belongs)](std::string_view text, std::vector<Span>& found) {
    for (size_t at = 0; at < text.size();) {
      const size_t begin = at;
      if (belongs(next_character(text, at))) found.push_back({begin, at, true});
    }
  };
  return pattern;
}

Pattern Pattern::read(const io::JsonFile& from, const std::string& key) {
  const io::JsonFile object = from.child(key);
  if (object.has("String")) return literal(object.string("String"));
  return regex(object.string("Regex"), object.where());
}

std::vector<Span> Pattern::find(std::string_view text) const {
  std::vector<Span> matches, all;
  matches_(text, matches);
  all.reserve(2 * matches.size() + 1);
  size_t done = 0;
  for (const Span& match : matches) {
    if (done != match.begin) all.push_back({done, match.begin, false});
    all.push_back(match);
    done = match.end;
  }
  if (done != text.size()) all.push_back({done, text.size(), false});
  return all;
}

std::vector<Span> Pattern::split(std::string_view text, Behaviour behaviour, bool invert) const {
  std::vector<Span> parts = find(text), kept;
  if (invert) {
    for (Span& part : parts) part.matched = !part.matched;
  }
  kept.reserve(parts.size());
  bool previous = false;
  const auto join_with_last = [&](const Span& part, bool join) {
    if (join && !kept.empty())
      kept.back().end = part.end;
    else
      kept.push_back(part);
    previous = part.matched;
  };
  switch (behaviour) {
    case Behaviour::kRemoved:
      std::copy_if(parts.begin(), parts.end(), std::back_inserter(kept),
                   [](const Span& part) { return !part.matched; });
      break;
    case Behaviour::kIsolated:
      kept = std::move(parts);
      break;
    case Behaviour::kContiguous:
      for (const Span& part : parts) join_with_last(part, part.matched == previous);
      break;
    case Behaviour::kMergedWithPrevious:
      for (const Span& part : parts) join_with_last(part, part.matched && !previous);
      break;
    case Behaviour::kMergedWithNext:
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
        if (part->matched && !previous && !kept.empty())
          kept.back().begin = part->begin;
        else
          kept.push_back(*part);
        previous = part->matched;
      }
      std::reverse(kept.begin(), kept.end());
      break;
  }
  std::erase_if(kept, [](const Span& part) { return part.begin == part.end; });
  return kept;
}

std::string replace_all(std::string_view text, const Pattern& pattern, const std::string& content,
                        const std::string& where) {
  const size_t most = most_grown(text.size());
  std::string out;
  for (const Span& part : pattern.find(text)) {
    if (part.matched)
      out += content;
    else
      out += text.substr(part.begin, part.end - part.begin);
    if (out.size() > most) refuse_growth(where, most);
  }
  return out;
}

}  // namespace limbeck::text
