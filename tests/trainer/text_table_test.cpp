#include "trainer/cli/console/text_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <stdexcept>

namespace limbeck::cli {
namespace {

TextTable modules() {
  TextTable table({{"module"}, {"bytes", Align::kRight}, {"from"}});
  table.add_row({"student.layers.0.mlp.up_proj", "128", "default"});
  table.add_row({"caf\xC3\xA9", "7", "recipes/my.ini:14"});
  return table;
}

TEST(TextTable, AlignsItsColumns) {
  EXPECT_EQ(modules().render(0),
            "module                        bytes  from\n"
            "----------------------------  -----  -----------------\n"
            "student.layers.0.mlp.up_proj    128  default\n"
            "caf\xC3\xA9                              7  recipes/my.ini:14\n");
}

TEST(TextTable, NarrowsToTheTerminalWithoutLosingACharacter) {
  for (int width = 40; width < 60; ++width) {
    const std::string text = modules().render(width);
    const size_t first_column = text.find(' ', text.find('\n')) - text.find('\n') - 1;  // as long as its rule
    std::istringstream lines(text);
    std::string names;
    for (std::string line; std::getline(lines, line);) {
      EXPECT_LE(display_columns(line), static_cast<size_t>(width)) << text;
      names += line.substr(0, first_column);
    }
    names.erase(std::remove(names.begin(), names.end(), ' '), names.end());
    EXPECT_NE(names.find("student.layers.0.mlp.up_proj"), std::string::npos) << text;
  }
}

TEST(TextTable, BreaksAtBlanksAndKeepsLineBreaks) {
  TextTable table({{"a"}, {"b"}});
  table.add_row({"one two three four", "x\ny"});
  EXPECT_EQ(table.render(15),
            "a             b\n"
            "------------  -\n"
            "one two       x\n"
            "three four    y\n");
}

TEST(TextTable, OfNothingIsNothing) { EXPECT_EQ(TextTable({{"a"}}).render(80), ""); }

TEST(TextTable, RefusesARowOfAnotherLength) {
  TextTable table({{"a"}, {"b"}});
  EXPECT_THROW(table.add_row({"x"}), std::logic_error);
}

TEST(TextTable, CutsBetweenCharacters) {
  EXPECT_EQ(first_columns("caf\xC3\xA9s", 4), "caf\xC3\xA9");
  EXPECT_EQ(first_columns("ab", 10), "ab");
  EXPECT_EQ(display_columns("caf\xC3\xA9s"), 5u);
}

}  // namespace
}  // namespace limbeck::cli
