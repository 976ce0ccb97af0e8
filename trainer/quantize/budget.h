// What a quantized model may weigh, everything counted, as a user says it: "4.5 bits" a weight, "6x" less than float32,
// "123456 bytes". Printed back in the unit in which it was asked.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace limbeck::quantize {

class Budget {
 public:
  enum class Unit { kBits, kRatio, kBytes };

  // UsageError, which begins with `source`, for anything else.
  static Budget parse(const std::string& text, const std::string& source);

  Unit unit() const { return unit_; }
  const std::string& text() const { return text_; }
  // Of a model with so many weights; rounded down.
  int64_t bytes(int64_t values) const;
  // The smallest budget in this unit that so many bytes fit into, as it can be typed.
  std::string holding(int64_t bytes, int64_t values) const;

 private:
  Budget(Unit unit, double amount, std::string text) : unit_(unit), amount_(amount), text_(std::move(text)) {}

  Unit unit_;
  double amount_;
  std::string text_;
};

// "3,4.5,6x": different ones; a number alone is bits a weight.
std::vector<Budget> parse_budgets(const std::string& text, const std::string& source);

}  // namespace limbeck::quantize
