// The progress of long work. On a terminal one line that redraws itself: bar, step, rate, ETA, and what the caller adds
// (loss, tokens/s); elsewhere a plain line now and then, so that a log stays readable.
#pragma once
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <string>

namespace limbeck::cli {

struct ProgressStyle {
  int width = 0;       // columns of the terminal; 0 = no terminal, plain lines
  bool quiet = false;  // nothing at all
  int64_t before = 0;  // done before this began: part of the bar and not of the rate
  double redraw_seconds = 0.1;
  double line_seconds = 10;            // between plain lines
  std::function<double()> clock = {};  // seconds, monotonic; empty: the steady clock
};

class Progress {
 public:
  // `total` 0: unknown, then there is no bar and no ETA. `unit` is plural: "steps", "tensors".
  Progress(std::ostream& out, std::string label, std::string unit, int64_t total, ProgressStyle style);
  ~Progress();  // leaves the cursor on a fresh line, also when an exception passes
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(int64_t done, const std::string& extra = "");
  void clear();  // the line off a terminal, so that another can be written; the next update draws it again
  void finish(const std::string& extra = "");  // prints the last state and the time it took; later calls do nothing

 private:
  std::string line(double elapsed, const std::string& extra) const;
  std::string rate_and_rest(double elapsed) const;
  void draw(const std::string& text);

  std::ostream& out_;
  std::string label_, unit_;
  int64_t total_, done_ = 0;
  ProgressStyle style_;
  double begin_, last_drawn_;
  size_t drawn_columns_ = 0;
  bool finished_ = false, drawn_ = false;
};

// 0:07, 12:34, 5:00:01, 3d 04:00:00
std::string clock_text(double seconds);

}  // namespace limbeck::cli
