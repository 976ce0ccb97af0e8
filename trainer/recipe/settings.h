// Every option of one command with its resolved value and where that value came from: default < recipe < flag.
// Built once, all values checked then; immutable afterwards. A getter of the wrong kind is a fault of the program
// (std::logic_error), never of the user.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/recipe/count.h"
#include "trainer/recipe/option_table.h"
#include "trainer/recipe/origin.h"
#include "trainer/recipe/recipe_file.h"

namespace limbeck::recipe {

struct Value {
  std::string text;  // of a path: absolute, unless it is the default
  Origin origin;
  bool operator==(const Value&) const = default;
};

class Settings {
 public:
  // `file` may be null: a command without a recipe. Violations are UsageError and say which line or flag.
  Settings(const OptionTable& table, const RecipeFile* file, const std::vector<Flag>& flags);

  bool given(const std::string& name) const;               // by the recipe or a flag
  const std::string& text(const std::string& name) const;  // any kind but lists
  std::filesystem::path path(const std::string& name) const;
  std::filesystem::path path_here(const std::string& name) const;  // WeightsError: of a model of the hub, not found
  int64_t integer(const std::string& name) const;
  double number(const std::string& name) const;
  bool enabled(const std::string& name) const;
  std::optional<c10::ScalarType> dtype(const std::string& name) const;  // none: a word such as auto; see text()
  std::optional<c10::Device> device(const std::string& name) const;     // none: a word such as auto
  // Of the models of `role`: its own device, else that of the command.
  c10::Device device_of(const std::string& role) const;
  Count count(const std::string& name) const;
  std::vector<std::string> list(const std::string& name) const;
  const std::vector<Value>& values(const std::string& name) const;  // a list with the origin of each entry

  // The same, for a value the command cannot do without: UsageError says how to set it.
  std::string required_text(const std::string& name) const;
  std::filesystem::path required_path(const std::string& name) const;

  Origin origin(const std::string& name) const;
  // What an error message ends with: "(recipes/my.ini:14)", "(--student.dtype)" or "(default of student.dtype)"
  std::string where(const std::string& name) const;

  // The same with one value set as if by a flag.
  Settings with(const std::string& name, const std::string& value) const;

  const OptionTable& table() const { return table_; }
  // The recipe these settings amount to; reading it gives the same settings. With origins, each line says as a comment
  // where its value came from.
  std::string to_ini(bool with_origins) const;

 private:
  void take_recipe(const RecipeFile& file);
  void take_flags(const std::vector<Flag>& flags);
  std::string place(const Option& option, const std::string& text, const std::filesystem::path& base);
  void put(const Option& option, const std::string& text, const Origin& origin, const std::string& shown_as,
           const std::filesystem::path& base);
  bool repeats(const Option& option, const std::pair<std::string, std::string>& spelled,
               const std::string& value) const;
  const Value& single(const std::string& name, OptionKind kind) const;

  OptionTable table_;
  std::map<std::string, std::string> unfound_;        // by canonical name: what is missing of a model of the hub
  std::string recipe_name_;                           // "" without a recipe
  std::map<std::string, std::vector<Value>> values_;  // by canonical name; one entry unless a list
};

}  // namespace limbeck::recipe
