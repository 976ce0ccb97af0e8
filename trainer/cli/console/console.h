// Where a command speaks: results to standard output, everything about the run to standard error. Quiet silences what
// is not a result, a warning or an error.
#pragma once
#include <iosfwd>
#include <string>

namespace limbeck::cli {

enum class Paint { kRed, kYellow, kGreen };

// `text` in colour, or as it is.
std::string painted(const std::string& text, Paint paint, bool colour);

// --color: always, never, or auto, which is a terminal that can (TERM is set and not dumb) and may (no NO_COLOR).
// Another word is left to the parser, which refuses it.
void choose_colour(const std::string& mode);
bool coloured(int descriptor);

struct Colours {
  bool out = false, err = false;
};

class Console {
 public:
  Console(std::ostream& out, std::ostream& err, bool quiet, bool results_to_text = true, Colours colours = {})
      : out_(out), err_(err), quiet_(quiet), results_to_text_(results_to_text), colours_(colours) {}

  void result(const std::string& text);   // what the user asked for
  void piece(const std::string& text);    // a result that comes in pieces: no newline is added
  void note(const std::string& text);     // about the run; not under --quiet
  void warning(const std::string& text);  // always

  std::string good_result(const std::string& word) const { return painted(word, Paint::kGreen, colours_.out); }
  std::string good_note(const std::string& word) const { return painted(word, Paint::kGreen, colours_.err); }

  bool quiet() const { return quiet_; }
  std::ostream& err() { return err_; }

 private:
  std::ostream& out_;
  std::ostream& err_;
  bool quiet_;
  bool results_to_text_;  // false under --json=-: standard output carries the JSON alone
  Colours colours_;
};

// Columns of the terminal behind a file descriptor, or 0 when it is none.
int terminal_width(int descriptor);

}  // namespace limbeck::cli
