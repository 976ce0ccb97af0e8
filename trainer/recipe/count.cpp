#include "trainer/recipe/count.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "trainer/recipe/message.h"

namespace limbeck::recipe {
namespace {

struct Unit {
  CountUnit unit;
  const char *name, *example;
};
constexpr Unit kUnits[] = {{CountUnit::kSteps, "steps", "500 steps"},
                           {CountUnit::kTokens, "tokens", "2M tokens"},
                           {CountUnit::kSamples, "samples", "50k samples"},
                           {CountUnit::kEpochs, "epochs", "1 epoch"},
                           {CountUnit::kPercent, "%", "3 %"}};
constexpr int kPercentZeros = 4, kShareZeros = 6;  // of a millionth

const Unit& entry_of(CountUnit unit) {
  return *std::find_if(std::begin(kUnits), std::end(kUnits), [&](const Unit& each) { return each.unit == unit; });
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string singular(CountUnit unit) {
  const std::string name = unit_name(unit);
  if (unit == CountUnit::kPercent) return name;
  return name.substr(0, name.size() - 1);
}

std::string wanted(const std::vector<CountUnit>& units) {
  std::vector<std::string> examples;
  for (const CountUnit unit : units) {
    examples.push_back(entry_of(unit).example);
  }
  return "wanted a count with its unit, such as " + any_of(examples);
}

int digits_of(char suffix) {  // how many zeros a suffix stands for; -1 when it is none
  switch (suffix) {
    case 'k':
    case 'K':
      return 3;
    case 'M':
      return 6;
    case 'G':
    case 'B':
      return 9;
    default:
      return -1;
  }
}

// "1.5" with 6 zeros -> 1500000, by digits and not through double, so that 0.1M is exact. False: not a whole number.
bool scaled(const std::string& number, int zeros, int64_t& out) {
  const size_t point = number.find('.');
  std::string digits = number.substr(0, point);
  std::string fraction = point == std::string::npos ? "" : number.substr(point + 1);
  while (!fraction.empty() && fraction.back() == '0') fraction.pop_back();
  if (static_cast<int>(fraction.size()) > zeros) return false;
  digits += fraction + std::string(static_cast<size_t>(zeros) - fraction.size(), '0');
  out = 0;
  for (const char c : digits) {
    if (__builtin_mul_overflow(out, int64_t{10}, &out) || __builtin_add_overflow(out, int64_t{c - '0'}, &out))
      return false;
  }
  return true;
}

}  // namespace

std::string unit_name(CountUnit unit) { return entry_of(unit).name; }

std::string Count::to_string() const {
  if (unit == CountUnit::kPercent) {
    std::string digits = fmt::format("{}.{:04}", amount / 10'000, amount % 10'000);
    digits.erase(digits.find_last_not_of('0') + 1);
    if (digits.back() == '.') digits.pop_back();
    return digits + " %";
  }
  const char* suffix = "";
  int64_t number = amount;
  for (const auto& [size, letter] :
       {std::pair<int64_t, const char*>{1'000'000'000, "G"}, {1'000'000, "M"}, {1'000, "k"}}) {
    if (amount != 0 && amount % size == 0) {
      number = amount / size;
      suffix = letter;
      break;
    }
  }
  return fmt::format("{}{} {}", number, suffix, amount == 1 ? singular(unit) : unit_name(unit));
}

namespace {

ParsedCount parsed_share(const std::string& number, int zeros) {
  Count count{0, CountUnit::kPercent};
  if (scaled(number, zeros, count.amount) && count.amount <= kWholeShare) return {count, ""};
  return {{}, "wanted a share of at most 1 or 100 %, to a millionth"};
}

bool offers(const std::vector<CountUnit>& units, CountUnit unit) {
  return std::find(units.begin(), units.end(), unit) != units.end();
}

}  // namespace

ParsedCount parse_count(const std::string& text, const std::vector<CountUnit>& units) {
  size_t at = 0;
  while (at < text.size() && (is_digit(text[at]) || text[at] == '.')) ++at;
  const std::string number = text.substr(0, at);
  if (number.empty() || !is_digit(number.front()) || std::count(number.begin(), number.end(), '.') > 1) {
    return {{}, wanted(units)};
  }
  int zeros = 0;
  if (at < text.size() && digits_of(text[at]) >= 0 && (at + 1 == text.size() || text[at + 1] == ' '))
    zeros = digits_of(text[at++]);
  while (at < text.size() && text[at] == ' ') ++at;
  const std::string word = text.substr(at);

  if (word.empty() && zeros == 0 && number.find('.') != std::string::npos && offers(units, CountUnit::kPercent)) {
    return parsed_share(number, kShareZeros);
  }
  std::vector<std::string> names;
  for (const CountUnit unit : units) names.push_back(unit_name(unit));
  if (word.empty()) {
    std::vector<std::string> spelled;
    for (const std::string& name : names) spelled.push_back(shown(text) + " " + name);
    return {{}, "the unit is missing: write " + any_of(spelled)};
  }
  const auto known = std::find_if(std::begin(kUnits), std::end(kUnits),
                                  [&](const Unit& u) { return word == u.name || word == singular(u.unit); });
  if (known == std::end(kUnits)) {
    const std::string guess = did_you_mean(word, names);
    return {{},
            fmt::format("unit \"{}\" is unknown: {}{}", shown(word), guess.empty() ? "" : guess + " ", wanted(units))};
  }
  const CountUnit unit = known->unit;
  if (!offers(units, unit)) {
    return {{}, fmt::format("counted in {} here, wanted {}", unit_name(unit), any_of(names))};
  }
  if (unit == CountUnit::kPercent && zeros == 0) return parsed_share(number, kPercentZeros);
  Count count{0, unit};
  if (unit == CountUnit::kPercent || !scaled(number, zeros, count.amount)) {
    return {{},
            fmt::format("wanted a whole number of {} up to {}", unit_name(unit), std::numeric_limits<int64_t>::max())};
  }
  return {count, ""};
}

}  // namespace limbeck::recipe
