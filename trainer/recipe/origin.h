// Where a value came from: its default, a line of a recipe, or the command line. Kept beside every resolved value, so
// that an error found much later (a module that refuses a dtype) can still name the line to change.
#pragma once
#include <string>
#include <utility>

namespace limbeck::recipe {

struct Origin {
  enum class Kind { kDefault, kFile, kCommandLine };
  Kind kind = Kind::kDefault;
  std::string file = {};  // as the user typed it
  int line = 0;           // counted from 1
  std::string flag = {};  // as the user typed it, without dashes

  static Origin of_default() { return {}; }
  static Origin of_line(std::string file, int line) { return {Kind::kFile, std::move(file), line, {}}; }
  static Origin of_command_line(std::string flag) { return {Kind::kCommandLine, {}, 0, std::move(flag)}; }

  // "default", "recipes/my.ini:14" or "command line"
  std::string to_string() const {
    if (kind == Kind::kFile) return file + ":" + std::to_string(line);
    return kind == Kind::kDefault ? "default" : "command line";
  }
  bool operator==(const Origin&) const = default;
};

}  // namespace limbeck::recipe
