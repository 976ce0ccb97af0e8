#include "trainer/energy/window_sampler.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

namespace limbeck::energy {
namespace {

// While a counter goes around once at the most that its part can draw: a thread that comes late is in time.
constexpr double kReadings = 4;
// Seconds: of one that goes around sooner nobody can tell how often it did.
constexpr double kMostOften = 1e-3;

}  // namespace

double sampling_seconds(const std::vector<DeviceMeters>& devices) {
  double seconds = std::numeric_limits<double>::infinity();
  for (const DeviceMeters& device : devices) {
    for (const auto& meter : device.meters) {
      if (meter->range() == 0) continue;
      seconds = std::min(seconds, 1e-6 * static_cast<double>(meter->range()) / meter->most_watts() / kReadings);
    }
  }
  return std::max(seconds, kMostOften);
}

WindowSampler::WindowSampler(std::vector<DeviceMeters> devices, Clock clock)
    : devices_(std::move(devices)), clock_(std::move(clock)) {
  const double seconds = sampling_seconds(devices_);
  if (std::isfinite(seconds)) thread_ = std::thread([this, seconds] { sample_in_time(seconds); });
}

WindowSampler::~WindowSampler() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  stopping_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void WindowSampler::begin() {
  const std::lock_guard lock(mutex_);
  window_.emplace(devices_, clock_);
}

EnergyUsed WindowSampler::end() {
  const std::lock_guard lock(mutex_);
  EnergyUsed used = window_->end();
  window_.reset();
  return used;
}

void WindowSampler::sample_in_time(double seconds) {
  std::unique_lock lock(mutex_);
  while (!stopping_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return stopped_; })) {
    if (window_) window_->sample();
  }
}

}  // namespace limbeck::energy
