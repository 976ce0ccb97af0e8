#include "trainer/recipe/option.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "trainer/recipe/message.h"
#include "trainer/recipe/value.h"

namespace limbeck::recipe {
namespace {

constexpr size_t kLongestValue = 16 * 1024;

// Spellings people bring from elsewhere. They are not accepted, one name for one dtype, but the answer is given.
std::string familiar_dtype(const std::string& text) {
  static const std::pair<const char*, const char*> kSpellings[] = {
      {"bf16", "bfloat16"},         {"fp16", "float16"},         {"half", "float16"},  {"f16", "float16"},
      {"fp32", "float32"},          {"f32", "float32"},          {"float", "float32"}, {"torch.bfloat16", "bfloat16"},
      {"torch.float16", "float16"}, {"torch.float32", "float32"}};
  for (const auto& [spelling, name] : kSpellings) {
    if (text == spelling) return name;
  }
  return "";
}

std::string word_fault(const Option& option, const std::string& value) {
  const auto offered = [&](const std::string& word) {
    return std::find(option.words.begin(), option.words.end(), word) != option.words.end();
  };
  if (offered(value)) return "";
  const std::string dtype = option.kind == OptionKind::kDtype ? familiar_dtype(value) : "";
  if (offered(dtype)) return fmt::format("wanted {}; write {}", any_of(option.words), dtype);
  return wanted_of(value, option.words);
}

std::string integer_wanted(const IntegerRange& range) {
  const IntegerRange any;
  if (range.low == any.low && range.high == any.high) return "a whole number";
  if (range.high == any.high) return fmt::format("a whole number, {} or more", range.low);
  return fmt::format("a whole number from {} to {}", range.low, range.high);
}

std::string number_wanted(const Interval& interval) {
  const bool low = std::isfinite(interval.low), high = std::isfinite(interval.high);
  if (!low) return high ? fmt::format("a number up to {}", interval.high) : "a number";
  const bool below = interval.below_high;
  const std::string from = fmt::format("{}{}", interval.above_low ? "above " : "from ", interval.low);
  return fmt::format("a number {}{}", from,
                     high ? fmt::format("{}{}",
                                        below                ? " to below "
                                        : interval.above_low ? " and up to "
                                                             : " to ",
                                        interval.high)
                          : " on");
}

std::string integer_fault(const Option& option, const std::string& value) {
  const auto number = to_integer(value);
  if (number && *number >= option.range.low && *number <= option.range.high) return "";
  return "wanted " + integer_wanted(option.range);
}

std::string number_fault(const Option& option, const std::string& value) {
  const auto number = to_number(value);
  const Interval& in = option.interval;
  const auto inside = [&](double x) {
    return (in.below_high ? x < in.high : x <= in.high) && (in.above_low ? x > in.low : x >= in.low);
  };
  if (number && inside(*number)) return "";
  return "wanted " + number_wanted(in);
}

std::string device_fault(const Option& option, const std::string& value) {
  if (to_device(value) || std::find(option.words.begin(), option.words.end(), value) != option.words.end()) return "";
  std::vector<std::string> words = option.words;
  words.insert(words.end(), {"cpu", "cuda", "cuda:0 (or another number)", "meta"});
  return "wanted " + any_of(words);
}

std::string kind_fault(const Option& option, const std::string& value) {
  switch (option.kind) {
    case OptionKind::kInteger:
      return integer_fault(option, value);
    case OptionKind::kNumber:
      return number_fault(option, value);
    case OptionKind::kSwitch:
      return to_bool(value) ? "" : "wanted true or false";
    case OptionKind::kChoice:
    case OptionKind::kDtype:
      return word_fault(option, value);
    case OptionKind::kDevice:
      return device_fault(option, value);
    case OptionKind::kCount:
      return parse_count(value, option.units).fault;
    default:
      return "";
  }
}

}  // namespace

std::string value_fault(const Option& option, const std::string& value) {
  if (value.size() > kLongestValue) return fmt::format("the value is longer than {} bytes", kLongestValue);
  for (const char c : value) {
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7F) return "control characters are not allowed";
  }
  if (!value.empty()) return kind_fault(option, value);
  if (option.kind == OptionKind::kList) return "wanted a value, or none to empty the list";
  const bool may_be_empty =
      option.fallback.empty() || option.kind == OptionKind::kText || option.kind == OptionKind::kPath;
  return may_be_empty ? "" : kind_fault(option, value) + ", got nothing";
}

const Shorthand* find_shorthand(const Option& option, const std::string& name) {
  const auto found = std::find_if(option.shorthands.begin(), option.shorthands.end(),
                                  [&](const Shorthand& shorthand) { return shorthand.name == name; });
  return found == option.shorthands.end() ? nullptr : &*found;
}

Said said_by(const Shorthand& shorthand, const std::string& value) {
  if (!shorthand.unit.empty()) {
    const auto number = to_integer(value);
    if (!number || *number < shorthand.least)
      return {{}, fmt::format("wanted a whole number, {} or more", shorthand.least)};
    return {fmt::format("{} {}", *number, shorthand.unit), {}};
  }
  std::vector<std::string> wanted;
  for (const auto& [word, says] : shorthand.words) {
    if (value == word) return {says, {}};
    wanted.push_back(word);
  }
  if (shorthand.when_on.empty()) return {{}, "wanted " + any_of(wanted)};
  wanted.insert(wanted.end(), {"true", "false"});
  const auto on = to_bool(value);
  if (!on) return {{}, "wanted " + any_of(wanted)};
  return {*on ? shorthand.when_on : "", {}};
}

std::string accepted_values(const Option& option) {
  if (!option.value_name.empty()) return option.value_name;
  switch (option.kind) {
    case OptionKind::kPath:
      return "PATH";
    case OptionKind::kInteger:
      return "INTEGER";
    case OptionKind::kNumber:
      return "NUMBER";
    case OptionKind::kSwitch:
      return "true|false";
    case OptionKind::kChoice:
    case OptionKind::kDtype:
      return fmt::format("{}", fmt::join(option.words, "|"));
    case OptionKind::kDevice:
      return fmt::format("{}{}cpu|cuda[:N]|meta", fmt::join(option.words, "|"), option.words.empty() ? "" : "|");
    case OptionKind::kCount: {
      std::vector<std::string> names;
      for (const CountUnit unit : option.units) names.push_back("N " + unit_name(unit));
      return fmt::format("\"{}\"", fmt::join(names, "|"));
    }
    default:
      return "TEXT";
  }
}

}  // namespace limbeck::recipe
