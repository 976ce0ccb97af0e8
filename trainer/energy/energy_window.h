// The energy of a stretch of time: differences of counters, with their going around. What cannot be known is said with
// its reason and is never 0; a sum over devices is known where that of each of them is.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "trainer/energy/energy_meter.h"

namespace limbeck::energy {

struct Joules {
  std::optional<double> value;
  std::string reason;  // where there is none
};

struct EnergyUsed {
  double seconds = 0;
  std::map<std::string, Joules> by_device;

  Joules total() const;  // of all devices
};

// Seconds, monotonic.
using Clock = std::function<double()>;
double steady_seconds();

class EnergyWindow {
 public:
  // Begins. The meters outlive it.
  explicit EnergyWindow(const std::vector<DeviceMeters>& devices, Clock clock = steady_seconds);

  // Reads all counters: often enough that none goes around twice in between. A fault stays for good.
  void sample();
  // Of the time from its beginning to now.
  EnergyUsed end();

 private:
  struct Counter {
    std::shared_ptr<EnergyMeter> meter;
    uint64_t last = 0, used = 0;  // microjoules
    std::string fault;
  };
  struct Device {
    std::string name, absent;
    std::vector<Counter> counters;
  };

  Clock clock_;
  double begin_, sampled_;
  std::vector<Device> devices_;
};

// What a counter went on by between two readings that lie `seconds` apart; with the reason where nobody can tell.
Reading difference(const EnergyMeter& meter, uint64_t before, uint64_t now, double seconds);

// `total` divided in proportion to `weights`, whose sum is above 0: the parts add up to it.
std::vector<double> shares(double total, const std::vector<double>& weights);

// What parts of some work used, each measured by itself, and what is left of the whole for the rest: they add up to it.
// Where parts alone came to more than the whole, each is scaled down and nothing is left.
struct Division {
  std::vector<double> parts;
  double rest = 0;
};
Division divide(double whole, const std::vector<double>& parts);

}  // namespace limbeck::energy
