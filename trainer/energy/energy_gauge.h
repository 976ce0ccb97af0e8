// The energy of some work that can be done again: the idle machine first, then windows as long as the counters'
// resolution needs, each of whole repetitions, until they agree or there were enough of them.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "trainer/energy/energy_window.h"

namespace limbeck::energy {

struct GaugeOptions {
  double least_seconds = 1.0;  // of a window
  double updates = 100;        // of the slowest counter that a window holds at least: its resolution is then 1 %
  double spread = 0.02;        // standard deviation over mean of the windows' joules a repetition
  int least_windows = 3, most_windows = 10;
};

struct IdleDraw {
  std::map<std::string, Joules> watts;  // by device
  Joules total() const;
};

// Of one repetition.
struct EnergyOfWork {
  Joules joules, above_idle;
  std::map<std::string, Joules> by_device;
  IdleDraw idle;
  double seconds = 0, spread = 0;
  int64_t repetitions = 0;
  int windows = 0;
  bool settled = false;  // the spread is under its bound
};

// Some device of these can be read.
bool any_meter(const std::vector<DeviceMeters>& devices);
double window_seconds(const std::vector<DeviceMeters>& devices, const GaugeOptions& options);

// `wait(seconds)` lets the machine rest; it is called as often as the counters must be read.
IdleDraw measure_idle(const std::vector<DeviceMeters>& devices, const GaugeOptions& options,
                      const std::function<void(double)>& wait, const Clock& clock = steady_seconds);
// Without any meter the work is not done at all.
EnergyOfWork measure_energy(const std::vector<DeviceMeters>& devices, const IdleDraw& idle, const GaugeOptions& options,
                            const std::function<void()>& work, const Clock& clock = steady_seconds);

}  // namespace limbeck::energy
