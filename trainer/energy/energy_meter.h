// One counter of energy that a machine keeps of one of its parts. It only grows, but for going around at the end of its
// range and for being reset; EnergyWindow makes differences of what it reads.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace limbeck::energy {

struct Reading {
  uint64_t microjoules = 0;
  std::string fault;  // why there is none; "" where there is
};

class EnergyMeter {
 public:
  virtual ~EnergyMeter() = default;

  virtual const std::string& name() const = 0;    // "RAPL package-0 (/sys/class/powercap/intel-rapl:0)"
  virtual const std::string& device() const = 0;  // whose energy it is: "cpu", "cuda:0"
  virtual Reading read() = 0;
  // Microjoules after which it begins at 0 again; 0: never.
  virtual uint64_t range() const = 0;
  // Between two of its updates: a window is many times as long.
  virtual double update_seconds() const = 0;
  // More than its part can draw: what tells going around from a reset.
  virtual double most_watts() const = 0;
};

// Meters of one device, or why it has none.
struct DeviceMeters {
  std::string device;
  std::vector<std::shared_ptr<EnergyMeter>> meters;
  std::string absent;  // where `meters` is empty: the reason
};

}  // namespace limbeck::energy
