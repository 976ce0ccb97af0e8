// An amount with its unit: `500 steps`, `2M tokens`, `1 epoch`, `3 %`. The unit is never implied, so a recipe cannot
// mean steps and get epochs; only 0.03 is a share by its point, where shares are accepted. parse_count(to_string(c)) ==
// c for every count.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace limbeck::recipe {

// kPercent: a share, its amount in millionths.
enum class CountUnit { kSteps, kTokens, kSamples, kEpochs, kPercent };

inline constexpr int64_t kWholeShare = 1'000'000;

struct Count {
  int64_t amount = 0;
  CountUnit unit = CountUnit::kSteps;

  std::string to_string() const;
  bool operator==(const Count&) const = default;
};

std::string unit_name(CountUnit unit);  // "steps", "tokens", "samples", "epochs", "%"

struct ParsedCount {
  Count count;
  std::string fault;  // empty when the text was a count; else what is wrong and what to write
};

// `units`: the ones this option accepts. Amounts may carry k, M, G (or B) and a decimal point: 1.5M tokens.
ParsedCount parse_count(const std::string& text, const std::vector<CountUnit>& units);

}  // namespace limbeck::recipe
