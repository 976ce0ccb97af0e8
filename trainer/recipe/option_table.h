// The one place where an option is declared: name, kind, range, default, help. A recipe key `[student] dtype =
// bfloat16` is the flag --student.dtype=bfloat16, and both come from the same entry. Boost.Program_options splits the
// command line and lays out --help; the order default < recipe < flag is in settings.h.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "trainer/recipe/option.h"

namespace limbeck::recipe {

struct Flag {
  std::string name;     // as the option is declared, aliases resolved
  std::string spelled;  // as it was typed, without the dashes
  std::string value;
};

struct ParsedCommandLine {
  std::vector<Flag> flags;  // in the order typed
  std::vector<std::string> operands;
};

class OptionTable {
 public:
  // Options added from here on stand under this heading in --help.
  void group(const std::string& title);
  // A name or alias declared twice, or a default that its own option refuses, is a fault of the program:
  // std::logic_error.
  void add(Option option);

  const std::vector<Option>& options() const { return options_; }
  const Option* find(const std::string& name_or_alias) const;  // null when unknown
  const Option& at(const std::string& name) const;             // std::logic_error when unknown
  std::vector<std::string> names() const;                      // canonical names, declared order
  std::vector<std::string> recipe_keys() const;                // the same without flag-only options
  // "did you mean objective.divergence?" for a name that is unknown: by its last part, else the nearest; or "".
  std::string guess(const std::string& wanted, const std::function<bool(const Option&)>& eligible) const;
  bool has_section(const std::string& section) const;

  // Splits arguments; checks no value. `program` ("limbeck check") is named in errors, which are UsageError.
  ParsedCommandLine parse(const std::vector<std::string>& arguments, const std::string& program) const;

  std::string help(unsigned width) const;  // every group, laid out for a terminal of that many columns
  std::string inventory() const;           // one line an option; tests freeze it

 private:
  struct Group {
    std::string title;
    size_t first;
  };
  std::vector<Option> options_;
  std::vector<Group> groups_;
};

}  // namespace limbeck::recipe
