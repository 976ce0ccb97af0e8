// RAPL: the counters that the kernel's powercap driver shows as files, of Intel's and AMD's processors alike. A package
// holds its cores and what is beside them; memory (dram) is apart. The other zones are parts of a package, or hold it.
#pragma once
#include <filesystem>

#include "trainer/energy/energy_meter.h"

namespace limbeck::energy {

inline constexpr const char* kPowercap = "/sys/class/powercap";

// Of all packages and their memory, as device "cpu". All of them or none: a sum without one of them is no sum.
DeviceMeters rapl_meters(const std::filesystem::path& root = kPowercap);

}  // namespace limbeck::energy
