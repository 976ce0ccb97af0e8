// What a run measured: RUN/metrics.jsonl, one JSON object a line, and TensorBoard event files beside it. Every line is
// handed to the kernel before write() returns. A resumed run's file reads as if it had never been interrupted.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trainer/metrics/append_file.h"
#include "trainer/metrics/tensorboard_writer.h"

namespace limbeck::metrics {

class MetricsLog {
 public:
  // Creates the folder. Lines of a step after resume_step, and half-written ones, are dropped; with 0, a run from its
  // beginning, all are.
  explicit MetricsLog(const std::filesystem::path& run_folder, int64_t resume_step = 0);

  // {"step": 12, "phase": "train", NAME: value, ...}; a value that is not finite is null. phase: "train" or "eval".
  // TensorBoard shows it as PHASE/NAME, where a name that starts with "PHASE." has lost that.
  void write(int64_t step, const std::vector<std::pair<std::string, double>>& values, const std::string& phase);

  // Why lines wait in memory (a full disk), or "". They are written with a later one.
  const std::string& fault() const { return lines_.fault().empty() ? events_.fault() : lines_.fault(); }
  int64_t dropped() const { return dropped_; }  // lines that the constructor removed

 private:
  int64_t dropped_;
  AppendFile lines_;
  TensorboardWriter events_;
};

}  // namespace limbeck::metrics
