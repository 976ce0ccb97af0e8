// A recipe as it stands on disk: keys in order, each with its line. Knows the syntax and its limits, not the options.
//
//   # comment            a line that starts with # or ; is a comment, and so is the rest of a line after blank and #
//   seed = 7             keys before the first section stand alone
//   [student]
//   dtype = bfloat16     the key student.dtype
//   note = "a # b"       double quotes keep blanks and #; inside them \" and \\ are the only escapes
//
// UTF-8, with or without a byte order mark, lines ending in LF or CRLF.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace limbeck::recipe {

struct RecipeEntry {
  std::string key;  // section.key
  std::string value;
  int line = 0;
};

class RecipeFile {
 public:
  // Opens a regular file of at most 1 MiB. UsageError (or IoError) names it as the user typed it.
  static RecipeFile read(const std::filesystem::path& path);
  RecipeFile(const std::string& text, std::string name);

  const std::string& name() const { return name_; }
  std::filesystem::path folder() const;  // what relative paths in it are relative to
  const std::vector<RecipeEntry>& entries() const { return entries_; }

  struct Section {
    std::string name;
    int line;
  };
  const std::vector<Section>& sections() const { return sections_; }

 private:
  void parse_line(const std::string& line, int number, std::string& section);
  [[noreturn]] void refuse(int line, const std::string& message) const;
  std::string parse_value(const std::string& text, int line) const;

  std::string name_;
  std::vector<RecipeEntry> entries_;
  std::vector<Section> sections_;
};

// The value as parse_value reads it back: quoted where it must be.
std::string written_value(const std::string& value);

}  // namespace limbeck::recipe
