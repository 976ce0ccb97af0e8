#include "trainer/cli/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <ostream>

namespace limbeck::cli {
namespace {

void line(std::ostream& stream, const std::string& text) {
  stream << text;
  if (text.empty() || text.back() != '\n') stream << '\n';
  stream.flush();
}

}  // namespace

void Console::result(const std::string& text) {
  if (results_to_text_) line(out_, text);
}

void Console::piece(const std::string& text) {
  if (results_to_text_) out_ << text << std::flush;
}

void Console::note(const std::string& text) {
  if (!quiet_) line(err_, text);
}

void Console::warning(const std::string& text) { line(err_, "warning: " + text); }

int terminal_width(int descriptor) {
  if (!::isatty(descriptor)) return 0;
  winsize size{};
  if (::ioctl(descriptor, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace limbeck::cli
