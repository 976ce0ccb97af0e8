// RAPL by the kernel's performance events: the same registers as powercap, counted in 64 bits that never go around, for
// machines whose powercap files are not there or closed.
#pragma once
#include <filesystem>

#include "trainer/energy/energy_meter.h"

namespace limbeck::energy {

inline constexpr const char* kPowerEvents = "/sys/bus/event_source/devices/power";

// energy-pkg and energy-ram of every package that the events' cpumask names, as device "cpu".
DeviceMeters perf_meters(const std::filesystem::path& root = kPowerEvents);

}  // namespace limbeck::energy
