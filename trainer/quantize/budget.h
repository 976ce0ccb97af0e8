// What a quantized model may weigh, everything counted, as a user says it: "4.5 bits" a weight, "6x" less than float32,
// "123456 bytes"; or how long a forward of it may take: "3 ms". Printed back in the unit in which it was asked.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace limbeck::quantize {

inline constexpr double kNanosecondsOfMs = 1e6;

class Budget {
 public:
  enum class Unit { kBits, kRatio, kBytes, kMilliseconds };

  // UsageError, which begins with `source`, for anything else.
  static Budget parse(const std::string& text, const std::string& source);

  Unit unit() const { return unit_; }
  const std::string& text() const { return text_; }
  bool is_time() const { return unit_ == Unit::kMilliseconds; }
  // Bytes of a model with so many weights, or nanoseconds; rounded down.
  int64_t allowed(int64_t values) const;
  // The smallest budget in this unit that so much fits into, as it can be typed.
  std::string holding(int64_t cost, int64_t values) const;

 private:
  Budget(Unit unit, double amount, std::string text) : unit_(unit), amount_(amount), text_(std::move(text)) {}

  Unit unit_;
  double amount_;
  std::string text_;
};

// "3,4.5,6x": different ones; a number alone is bits a weight.
std::vector<Budget> parse_budgets(const std::string& text, const std::string& source);

}  // namespace limbeck::quantize
