#include "trainer/energy/energy_gauge.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "trainer/energy/window_sampler.h"

namespace limbeck::energy {
namespace {

struct Windowed {
  EnergyUsed used;
  int64_t repetitions = 0;
};

Windowed one_window(WindowSampler& sampler, double seconds, const std::function<void()>& work, const Clock& clock) {
  Windowed result;
  sampler.begin();
  const double begin = clock();
  do {
    work();
    ++result.repetitions;
  } while (clock() - begin < seconds);
  result.used = sampler.end();
  return result;
}

double relative_spread(const std::vector<double>& values) {
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return mean > 0 ? std::sqrt(squares / static_cast<double>(values.size() - 1)) / mean : 0;
}

// Of what is known of all devices, else of those of which something is: whether their windows agree is a question too.
double known(const EnergyUsed& used) {
  double sum = 0;
  for (const auto& [device, joules] : used.by_device) sum += joules.value.value_or(0);
  return sum;
}

void add_device(Joules& sum, const Joules& more) {
  if (!more.value || !sum.reason.empty()) {
    if (sum.reason.empty()) sum.reason = more.reason;
    sum.value.reset();
  } else {
    sum.value = sum.value.value_or(0) + *more.value;
  }
}

Joules less_idle(const EnergyOfWork& work) {
  const Joules idle = work.idle.total();
  if (!work.joules.value) return work.joules;
  if (!idle.value) return idle;
  return {*work.joules.value - *idle.value * work.seconds, ""};
}

}  // namespace

Joules IdleDraw::total() const { return EnergyUsed{0, watts}.total(); }

bool any_meter(const std::vector<DeviceMeters>& devices) {
  return std::any_of(devices.begin(), devices.end(), [](const auto& device) { return !device.meters.empty(); });
}

double window_seconds(const std::vector<DeviceMeters>& devices, const GaugeOptions& options) {
  double seconds = options.least_seconds;
  for (const DeviceMeters& device : devices) {
    for (const auto& meter : device.meters) seconds = std::max(seconds, options.updates * meter->update_seconds());
  }
  return seconds;
}

IdleDraw measure_idle(const std::vector<DeviceMeters>& devices, const GaugeOptions& options,
                      const std::function<void(double)>& wait, const Clock& clock) {
  IdleDraw draw;
  EnergyWindow window(devices, clock);
  if (any_meter(devices)) {
    const double each = sampling_seconds(devices);
    for (double left = window_seconds(devices, options); left > 0; left -= each) {
      wait(std::min(left, each));
      window.sample();
    }
  }
  const EnergyUsed used = window.end();
  for (const auto& [device, joules] : used.by_device) {
    draw.watts[device] = joules;
    if (joules.value) draw.watts[device].value = *joules.value / used.seconds;
  }
  return draw;
}

EnergyOfWork measure_energy(const std::vector<DeviceMeters>& devices, const IdleDraw& idle, const GaugeOptions& options,
                            const std::function<void()>& work, const Clock& clock) {
  EnergyOfWork result;
  result.idle = idle;
  if (!any_meter(devices)) {
    const EnergyUsed nothing = EnergyWindow(devices, clock).end();
    result.by_device = nothing.by_device;
    result.joules = result.above_idle = nothing.total();
    return result;
  }
  WindowSampler sampler(devices, clock);
  std::vector<double> each;
  double seconds = 0;
  while (result.windows < options.most_windows && !result.settled) {
    const Windowed window = one_window(sampler, window_seconds(devices, options), work, clock);
    for (const auto& [device, joules] : window.used.by_device) add_device(result.by_device[device], joules);
    result.repetitions += window.repetitions;
    seconds += window.used.seconds;
    each.push_back(known(window.used) / static_cast<double>(window.repetitions));
    ++result.windows;
    if (result.windows < options.least_windows) continue;
    result.spread = relative_spread(each);
    result.settled = result.spread <= options.spread;
  }
  const auto times = static_cast<double>(result.repetitions);
  for (auto& [device, joules] : result.by_device) {
    if (joules.value) *joules.value /= times;
  }
  result.seconds = seconds / times;
  result.joules = EnergyUsed{0, result.by_device}.total();
  result.above_idle = less_idle(result);
  return result;
}

}  // namespace limbeck::energy
