#include "trainer/cli/console/text_table.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace limbeck::cli {
namespace {

constexpr size_t kGap = 2;
constexpr size_t kNarrowest = 12;  // below this a wrapped cell is harder to read than a long line

bool starts_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }

// Lines of at most `width` columns, broken at blanks where there is one in the second half of the line.
std::vector<std::string> wrapped(const std::string& cell, size_t width) {
  std::vector<std::string> lines;
  for (size_t at = 0; at <= cell.size();) {
    const size_t end = std::min(cell.find('\n', at), cell.size());
    std::string rest = cell.substr(at, end - at);
    while (display_columns(rest) > width) {
      std::string head = first_columns(rest, width);
      const size_t blank = head.rfind(' ');
      if (blank != std::string::npos && blank * 2 >= head.size()) head.resize(blank);
      rest.erase(0, head.size());
      rest.erase(0, rest.find_first_not_of(' '));
      lines.push_back(head);
    }
    lines.push_back(rest);
    at = end + 1;
  }
  return lines;
}

std::string padded(const std::string& text, size_t width, Align align) {
  const size_t columns = display_columns(text);
  const std::string space(columns < width ? width - columns : 0, ' ');
  return align == Align::kLeft ? text + space : space + text;
}

}  // namespace

size_t display_columns(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), starts_character));
}

std::string first_columns(const std::string& text, size_t columns) {
  size_t at = 0, seen = 0;
  for (; at < text.size(); ++at) {
    if (starts_character(text[at]) && seen++ == columns) break;
  }
  return text.substr(0, at);
}

void TextTable::add_row(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) throw std::logic_error("table row has another number of cells than columns");
  rows_.push_back(std::move(cells));
}

std::vector<size_t> TextTable::fitted_widths(int width) const {
  std::vector<size_t> widths;
  for (size_t c = 0; c < columns_.size(); ++c) {
    size_t widest = display_columns(columns_[c].title);
    for (const auto& row : rows_) {
      for (const std::string& line : wrapped(row[c], std::string::npos))
        widest = std::max(widest, display_columns(line));
    }
    widths.push_back(widest);
  }
  if (width <= 0) return widths;
  const auto total = [&] { return std::accumulate(widths.begin(), widths.end(), kGap * (widths.size() - 1)); };
  while (total() > static_cast<size_t>(width)) {
    size_t* widest = nullptr;
    for (size_t c = 0; c < widths.size(); ++c) {
      const size_t least = std::max(kNarrowest, display_columns(columns_[c].title));
      if (columns_[c].align == Align::kLeft && widths[c] > least && (!widest || widths[c] > *widest))
        widest = &widths[c];
    }
    if (!widest) break;
    --*widest;
  }
  return widths;
}

std::string TextTable::render(int width) const {
  if (rows_.empty()) return "";
  const auto widths = fitted_widths(width);
  std::string out;
  const auto write = [&](const std::vector<std::string>& cells) {
    std::vector<std::vector<std::string>> lines;
    size_t height = 0;
    for (size_t c = 0; c < cells.size(); ++c) {
      lines.push_back(wrapped(cells[c], widths[c]));
      height = std::max(height, lines.back().size());
    }
    for (size_t h = 0; h < height; ++h) {
      std::string line;
      for (size_t c = 0; c < cells.size(); ++c) {
        if (c > 0) line += std::string(kGap, ' ');
        line += padded(h < lines[c].size() ? lines[c][h] : "", widths[c], columns_[c].align);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      out += line + '\n';
    }
  };
  std::vector<std::string> titles, rules;
  for (size_t c = 0; c < columns_.size(); ++c) {
    titles.push_back(columns_[c].title);
    rules.push_back(std::string(widths[c], '-'));
  }
  write(titles);
  write(rules);
  for (const auto& row : rows_) write(row);
  return out;
}

}  // namespace limbeck::cli
