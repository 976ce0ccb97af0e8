// One option: what it is called, what it accepts, what it is when nobody says anything, and one sentence of help.
#pragma once
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "trainer/recipe/count.h"

namespace limbeck::recipe {

enum class OptionKind {
  kText,
  kPath,     // relative to the recipe's folder when a recipe sets it, to the current directory when a flag does
  kInteger,  // within `range`
  kNumber,   // within `interval`, finite
  kSwitch,   // true or false; a flag alone is true
  kChoice,   // one of `words`
  kDtype,    // one of `words`: dtype names and words such as auto, teacher
  kDevice,   // cpu, cuda, cuda:N, meta, or one of `words`
  kCount,    // an amount in one of `units`
  kList,     // may be repeated; values accumulate in order, recipe first, then flags; `none` empties the list so far
};

struct IntegerRange {
  int64_t low = std::numeric_limits<int64_t>::min(), high = std::numeric_limits<int64_t>::max();
};

struct Interval {
  double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
  bool above_low = false;  // low itself is outside
};

struct Option {
  std::string name = {};
  OptionKind kind = OptionKind::kText;
  std::string fallback = {};  // the default, as a user would type it; "" = not set
  std::string help = {};
  std::vector<std::string> words = {};
  IntegerRange range = {};
  Interval interval = {};
  std::vector<CountUnit> units = {};
  std::string value_name = {};            // shown in --help where the kind alone says too little: FILE, DIR
  std::vector<std::string> aliases = {};  // other spellings, accepted in recipes and as flags, never printed back
  char letter = 0;                        // -h
  bool flag_only = false;                 // no recipe key: --json, --plugin
};

// What is wrong with `value` and what was wanted, or "" when the option accepts it.
std::string value_fault(const Option& option, const std::string& value);

// What the option accepts, short: INTEGER, auto|float32|bfloat16
std::string accepted_values(const Option& option);

}  // namespace limbeck::recipe
