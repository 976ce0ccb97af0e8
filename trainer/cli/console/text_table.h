// Aligned columns for a person to read. Where the table is wider than the terminal, the widest left-aligned columns are
// narrowed and their cells go on below; nothing is cut off, because a module's name cut off is no name.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace limbeck::cli {

enum class Align { kLeft, kRight };

class TextTable {
 public:
  struct Column {
    std::string title;
    Align align = Align::kLeft;
  };
  explicit TextTable(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // As many cells as columns (std::logic_error otherwise); line breaks in a cell are kept.
  void add_row(std::vector<std::string> cells);
  // `width`: columns of the terminal, 0 = as wide as it needs. Ends with a line break; a table without rows is "".
  std::string render(int width) const;

 private:
  std::vector<size_t> fitted_widths(int width) const;

  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

size_t display_columns(const std::string& text);                     // UTF-8 characters
std::string first_columns(const std::string& text, size_t columns);  // never half a character

}  // namespace limbeck::cli
