// How long the phases of an update took on the thread that computes it: each second belongs to the innermost phase that
// runs. What a GPU is still computing when a call returns is counted where it is waited for.
#pragma once
#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace limbeck::metrics {

// Counts on its thread while it lives; one at a time.
class PhaseClock {
 public:
  PhaseClock();
  ~PhaseClock();
  PhaseClock(const PhaseClock&) = delete;
  PhaseClock& operator=(const PhaseClock&) = delete;

  // In the order in which the phases first began.
  const std::vector<std::pair<std::string, double>>& seconds() const { return seconds_; }

 private:
  friend class InPhase;
  void enter(const char* phase);
  void leave();
  void settle();  // the time since the last change goes to the phase that ran

  std::vector<const char*> running_;
  std::chrono::steady_clock::time_point since_;
  std::vector<std::pair<std::string, double>> seconds_;
};

// The phase of a scope; nothing where no clock runs.
class InPhase {
 public:
  explicit InPhase(const char* phase);
  ~InPhase();
  InPhase(const InPhase&) = delete;
  InPhase& operator=(const InPhase&) = delete;

 private:
  PhaseClock* clock_;
};

}  // namespace limbeck::metrics
