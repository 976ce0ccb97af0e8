#include "trainer/cli/console/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ostream>

#include "trainer/cli/console/text_table.h"

namespace limbeck::cli {
namespace {

constexpr int kBarColumns = 24;

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string bar(double share) {
  const int filled = static_cast<int>(std::clamp(share, 0.0, 1.0) * kBarColumns);
  return fmt::format("[{}{}]", std::string(static_cast<size_t>(filled), '#'),
                     std::string(static_cast<size_t>(kBarColumns - filled), '-'));
}

}  // namespace

std::string clock_text(double seconds) {
  // Years of ETA carry no news, and must not overflow.
  const auto whole = static_cast<int64_t>(std::llround(std::clamp(seconds, 0.0, 3.0e9)));
  const int64_t days = whole / 86400, hours = whole / 3600 % 24, minutes = whole / 60 % 60, rest = whole % 60;
  if (days > 0) return fmt::format("{}d {:02}:{:02}:{:02}", days, hours, minutes, rest);
  return hours > 0 ? fmt::format("{}:{:02}:{:02}", hours, minutes, rest) : fmt::format("{}:{:02}", minutes, rest);
}

Progress::Progress(std::ostream& out, std::string label, std::string unit, int64_t total, ProgressStyle style)
    : out_(out), label_(std::move(label)), unit_(std::move(unit)), total_(total), style_(std::move(style)) {
  if (!style_.clock) style_.clock = steady_seconds;
  begin_ = style_.clock();
  last_drawn_ = begin_;
}

Progress::~Progress() {
  if (!finished_ && drawn_ && style_.width > 0) out_ << '\n' << std::flush;
}

std::string Progress::rate_and_rest(double elapsed) const {
  if (done_ <= style_.before || elapsed <= 0) return "";
  const double rate = static_cast<double>(done_ - style_.before) / elapsed;
  std::string out = fmt::format("  {:.{}f} {}/s", rate, rate >= 100 ? 0 : rate >= 1 ? 1 : 3, unit_);
  if (finished_) return out + "  in " + clock_text(elapsed);
  if (total_ > 0) out += "  ETA " + clock_text(static_cast<double>(std::max<int64_t>(total_ - done_, 0)) / rate);
  return out;
}

std::string Progress::line(double elapsed, const std::string& extra) const {
  std::string out = label_ + "  ";
  if (total_ > 0 && style_.width > 0) out += bar(static_cast<double>(done_) / static_cast<double>(total_)) + " ";
  out += total_ > 0 ? fmt::format("{}/{} {}", done_, total_, unit_) : fmt::format("{} {}", done_, unit_);
  out += rate_and_rest(elapsed);
  if (!extra.empty()) out += "  " + extra;
  return out;
}

void Progress::draw(const std::string& text) {
  drawn_ = true;
  if (style_.width <= 0) {
    out_ << text << '\n' << std::flush;
    return;
  }
  // One column is left free: some terminals wrap as soon as the last one is written.
  const std::string fitting = first_columns(text, static_cast<size_t>(std::max(style_.width - 1, 1)));
  const size_t columns = display_columns(fitting);
  out_ << '\r' << fitting << std::string(drawn_columns_ > columns ? drawn_columns_ - columns : 0, ' ') << std::flush;
  drawn_columns_ = columns;
}

void Progress::update(int64_t done, const std::string& extra) {
  if (finished_ || style_.quiet) return;
  done_ = done;
  const double now = style_.clock();
  const double wait = style_.width > 0 ? style_.redraw_seconds : style_.line_seconds;
  if (now - last_drawn_ < wait && (drawn_ || style_.width <= 0)) return;
  last_drawn_ = now;
  draw(line(now - begin_, extra));
}

void Progress::clear() {
  if (finished_ || style_.width <= 0 || drawn_columns_ == 0) return;
  out_ << '\r' << std::string(drawn_columns_, ' ') << '\r' << std::flush;
  drawn_columns_ = 0;
  drawn_ = false;
}

void Progress::finish(const std::string& extra) {
  if (finished_ || style_.quiet) return;
  finished_ = true;
  draw(line(style_.clock() - begin_, extra));
  if (style_.width > 0) out_ << '\n' << std::flush;
}

}  // namespace limbeck::cli
