// One option: what it is called, what it accepts, what it is when nobody says anything, and one sentence of help.
#pragma once
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
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
  bool above_low = false, below_high = false;  // low or high itself is outside
};

// Another name under which the option is set by another kind of value: a switch that, when on, says `when_on`
// (use_fp16 for float16) and off says nothing; with `unit`, a bare number (num_samples for "N samples"); with `words`,
// each with what it says ("": nothing), beside true and false where `when_on` is not empty.
struct Shorthand {
  std::string name = {}, when_on = {}, unit = {};
  std::vector<std::pair<std::string, std::string>> words = {};
  int64_t least = 1;  // of the bare number
};

// What a command makes, or replaces, at a path.
enum class Writes { kNothing, kFile, kFolder };

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
  std::vector<Shorthand> shorthands = {};
  char letter = 0;  // -h
  Writes writes = Writes::kNothing;
  bool flag_only = false;  // no recipe key: --json, --plugin
  bool on_hub = false;  // of a path: where no folder is there, a name of the hub means its snapshot in the local cache
};

// What is wrong with `value` and what was wanted, or "" when the option accepts it.
std::string value_fault(const Option& option, const std::string& value);

const Shorthand* find_shorthand(const Option& option, const std::string& name);  // null: it is none

struct Said {
  std::string value = {};  // for the option; "" when it says nothing
  std::string fault = {};
};
// What a value means that was given by a shorthand.
Said said_by(const Shorthand& shorthand, const std::string& value);

// What the option accepts, short: INTEGER, auto|float32|bfloat16
std::string accepted_values(const Option& option);

}  // namespace limbeck::recipe
