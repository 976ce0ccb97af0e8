#include "trainer/energy/energy_window.h"

#include <fmt/format.h>

#include <chrono>
#include <numeric>
#include <utility>

namespace limbeck::energy {
namespace {

constexpr double kMicro = 1e-6;

}  // namespace

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Joules EnergyUsed::total() const {
  if (by_device.empty()) return {{}, "no device did any work"};
  Joules sum{0.0, ""};
  for (const auto& [device, joules] : by_device) {
    if (!joules.value) return {{}, fmt::format("{}: {}", device, joules.reason)};
    *sum.value += *joules.value;
  }
  return sum;
}

Reading difference(const EnergyMeter& meter, uint64_t before, uint64_t now, double seconds) {
  const uint64_t range = meter.range();
  const double most = meter.most_watts() * seconds / kMicro;
  if (range > 0 && most >= static_cast<double>(range)) {
    return {0, fmt::format("{} was read {:.0f} s apart, and goes around after {:.0f} J, which it may have done more "
                           "than once",
                           meter.name(), seconds, static_cast<double>(range) * kMicro)};
  }
  if (now >= before) return {now - before, ""};
  // A counter is read some time after it was updated: an update more than the seconds allow.
  const double late = meter.most_watts() * meter.update_seconds() / kMicro;
  const uint64_t around = range >= before ? range - before + now : 0;
  if (range >= before && range > 0 && static_cast<double>(around) <= most + late) return {around, ""};
  return {0, fmt::format("{} fell from {} to {} microjoules: it was reset", meter.name(), before, now)};
}

// The clock first, then the counters, as in each sample: what lies between two looks at a counter is the time between
// two at the clock.
EnergyWindow::EnergyWindow(const std::vector<DeviceMeters>& devices, Clock clock)
    : clock_(std::move(clock)), begin_(clock_()), sampled_(begin_) {
  for (const DeviceMeters& device : devices) {
    Device kept{device.device, device.absent, {}};
    for (const auto& meter : device.meters) {
      const Reading first = meter->read();
      kept.counters.push_back({meter, first.microjoules, 0, first.fault});
    }
    devices_.push_back(std::move(kept));
  }
}

void EnergyWindow::sample() {
  const double now = clock_(), seconds = now - std::exchange(sampled_, now);
  for (Device& device : devices_) {
    for (Counter& counter : device.counters) {
      if (!counter.fault.empty()) continue;
      const Reading reading = counter.meter->read();
      if (!reading.fault.empty()) {
        counter.fault = reading.fault;
        continue;
      }
      const Reading more = difference(*counter.meter, counter.last, reading.microjoules, seconds);
      counter.fault = more.fault;
      counter.used += more.microjoules;
      counter.last = reading.microjoules;
    }
  }
}

EnergyUsed EnergyWindow::end() {
  sample();
  EnergyUsed result;
  result.seconds = sampled_ - begin_;
  for (const Device& device : devices_) {
    Joules& joules = result.by_device[device.name];
    if (device.counters.empty()) {
      joules.reason = device.absent.empty() ? "it has no meter" : device.absent;
      continue;
    }
    uint64_t sum = 0;
    for (const Counter& counter : device.counters) {
      if (joules.reason.empty()) joules.reason = counter.fault;
      sum += counter.used;
    }
    if (joules.reason.empty()) joules.value = static_cast<double>(sum) * kMicro;
  }
  return result;
}

std::vector<double> shares(double total, const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> parts;
  double before = 0, given = 0;  // each part is a difference of running sums, the last of which is the total itself
  for (size_t i = 0; i < weights.size(); ++i) {
    before += weights[i];
    const double upto = i + 1 == weights.size() ? total : total * (before / sum);
    parts.push_back(upto - given);
    given = upto;
  }
  return parts;
}

Division divide(double whole, const std::vector<double>& parts) {
  const double sum = std::accumulate(parts.begin(), parts.end(), 0.0);
  if (sum > whole && sum > 0) return {shares(whole, parts), 0};
  return {parts, whole - sum};
}

}  // namespace limbeck::energy
