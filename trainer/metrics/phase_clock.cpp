#include "trainer/metrics/phase_clock.h"

#include <algorithm>
#include <stdexcept>

namespace limbeck::metrics {

namespace {
thread_local PhaseClock* active_clock = nullptr;
}  // namespace

PhaseClock::PhaseClock() {
  if (active_clock != nullptr) throw std::logic_error("a second PhaseClock on one thread");
  active_clock = this;
}

PhaseClock::~PhaseClock() { active_clock = nullptr; }

void PhaseClock::settle() {
  const auto now = std::chrono::steady_clock::now();
  if (!running_.empty()) {
    const std::string phase = running_.back();
    auto found = std::find_if(seconds_.begin(), seconds_.end(), [&](const auto& one) { return one.first == phase; });
    found->second += std::chrono::duration<double>(now - since_).count();
  }
  since_ = now;
}

void PhaseClock::enter(const char* phase) {
  settle();
  running_.push_back(phase);
  const auto same = [&](const auto& one) { return one.first == phase; };
  if (std::none_of(seconds_.begin(), seconds_.end(), same)) seconds_.emplace_back(phase, 0.0);
}

void PhaseClock::leave() {
  settle();
  running_.pop_back();
}

InPhase::InPhase(const char* phase) : clock_(active_clock) {
  if (clock_ != nullptr) clock_->enter(phase);
}

InPhase::~InPhase() {
  if (clock_ != nullptr) clock_->leave();
}

}  // namespace limbeck::metrics
