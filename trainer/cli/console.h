// Where a command speaks: results to standard output, everything about the run to standard error. Quiet silences what
// is not a result, a warning or an error.
#pragma once
#include <iosfwd>
#include <string>

namespace limbeck::cli {

class Console {
 public:
  Console(std::ostream& out, std::ostream& err, bool quiet, bool results_to_text = true)
      : out_(out), err_(err), quiet_(quiet), results_to_text_(results_to_text) {}

  void result(const std::string& text);   // what the user asked for
  void piece(const std::string& text);    // a result that comes in pieces: no newline is added
  void note(const std::string& text);     // about the run; not under --quiet
  void warning(const std::string& text);  // always

  bool quiet() const { return quiet_; }
  std::ostream& err() { return err_; }

 private:
  std::ostream& out_;
  std::ostream& err_;
  bool quiet_;
  bool results_to_text_;  // false under --json=-: standard output carries the JSON alone
};

// Columns of the terminal behind a file descriptor, or 0 when it is none.
int terminal_width(int descriptor);

}  // namespace limbeck::cli
