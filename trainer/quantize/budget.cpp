#include "trainer/quantize/budget.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <sstream>

#include "modules/errors.h"

namespace limbeck::quantize {

namespace {

constexpr double kFloatBytes = 4, kByteBits = 8, kPrintedSteps = 1000;
constexpr double kMost = 1e15;  // whole numbers up to here are doubles

}  // namespace

Budget Budget::parse(const std::string& text, const std::string& source) {
  double amount = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), amount);
  std::string unit(end, text.data() + text.size());
  unit.erase(0, unit.find_first_not_of(' '));
  const bool number = fault == std::errc() && amount > 0 && amount < kMost;
  if (number && (unit == "bits" || unit == "bit")) return {Unit::kBits, amount, text};
  if (number && unit == "x") return {Unit::kRatio, amount, text};
  if (number && (unit == "bytes" || unit == "byte") && amount == std::floor(amount))
    return {Unit::kBytes, amount, text};
  if (number && unit == "ms") return {Unit::kMilliseconds, amount, text};
  throw UsageError(fmt::format(
      "{} = \"{}\": wanted what the model may weigh, everything counted: bits a weight (\"4.5 bits\"), how "
      "much less than float32 (6x), or whole bytes (\"123456 bytes\"); or how long a forward may take (\"3 ms\")",
      source, text));
}

std::vector<Budget> parse_budgets(const std::string& text, const std::string& source) {
  std::vector<Budget> budgets;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    const bool number = !word.empty() && word.find_first_not_of("0123456789.") == std::string::npos;
    const Budget budget = Budget::parse(number ? word + " bits" : word, source);
    for (const Budget& other : budgets) {
      if (other.text() == budget.text())
        throw UsageError(fmt::format("{} = \"{}\": names {} twice: name it once", source, text, budget.text()));
    }
    budgets.push_back(budget);
  }
  if (budgets.empty()) throw UsageError(fmt::format("{} names no budget: wanted such as 3,4,5,6 or 4x,6x", source));
  return budgets;
}

int64_t Budget::allowed(int64_t values) const {
  const auto count = static_cast<double>(values);
  if (unit_ == Unit::kBits) return static_cast<int64_t>(amount_ * count / kByteBits);
  if (unit_ == Unit::kRatio) return static_cast<int64_t>(count * kFloatBytes / amount_);
  return static_cast<int64_t>(is_time() ? amount_ * kNanosecondsOfMs : amount_);
}

std::string Budget::holding(int64_t cost, int64_t values) const {
  const auto count = static_cast<double>(values), whole = static_cast<double>(cost);
  if (unit_ == Unit::kBytes) return fmt::format("{} bytes", cost);
  if (is_time()) return fmt::format("{:.3f} ms", std::ceil(kPrintedSteps * whole / kNanosecondsOfMs) / kPrintedSteps);
  if (unit_ == Unit::kBits)
    return fmt::format("{:.3f} bits", std::ceil(kPrintedSteps * kByteBits * whole / count) / kPrintedSteps);
  return fmt::format("{:.3f}x", std::floor(kPrintedSteps * kFloatBytes * count / whole) / kPrintedSteps);
}

}  // namespace limbeck::quantize
