#include "trainer/cli/console/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>
#include <ostream>
#include <string_view>

namespace limbeck::cli {
namespace {

void line(std::ostream& stream, const std::string& text) {
  stream << text;
  if (text.empty() || text.back() != '\n') stream << '\n';
  stream.flush();
}

std::string colour_mode = "auto";  // of the whole program: its last word, from main(), is coloured as its first

}  // namespace

void choose_colour(const std::string& mode) { colour_mode = mode; }

bool coloured(int descriptor) {
  if (colour_mode == "always" || colour_mode == "never") return colour_mode == "always";
  const char *no = std::getenv("NO_COLOR"), *terminal = std::getenv("TERM");
  const bool may = no == nullptr || *no == '\0', can = terminal != nullptr && std::string_view(terminal) != "dumb";
  return may && can && *terminal != '\0' && ::isatty(descriptor) != 0;
}

std::string painted(const std::string& text, Paint paint, bool colour) {
  if (!colour) return text;
  const char* code = paint == Paint::kRed ? "31" : paint == Paint::kYellow ? "33" : "32";
  return std::string("\033[") + code + "m" + text + "\033[0m";
}

void Console::result(const std::string& text) {
  if (results_to_text_) line(out_, text);
}

void Console::piece(const std::string& text) {
  if (results_to_text_) out_ << text << std::flush;
}

void Console::note(const std::string& text) {
  if (!quiet_) line(err_, text);
}

void Console::warning(const std::string& text) {
  line(err_, painted("warning:", Paint::kYellow, colours_.err) + " " + text);
}

int terminal_width(int descriptor) {
  if (!::isatty(descriptor)) return 0;
  winsize size{};
  if (::ioctl(descriptor, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace limbeck::cli
