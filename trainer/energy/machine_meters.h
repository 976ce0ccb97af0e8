// The meters of the devices that do some work, and of no other: the energy of a run on the CPU is never that of a GPU
// beside it. A GPU's work keeps the CPU busy too.
#pragma once
#include <c10/core/Device.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainer/energy/energy_meter.h"

namespace limbeck::energy {

// Where a machine's counters are. LIMBECK_POWERCAP, LIMBECK_POWER_EVENTS, LIMBECK_THERMAL and LIMBECK_NVML name other
// places, as in containers that see the machine's /sys elsewhere.
struct MeterPlaces {
  std::filesystem::path powercap, power_events, thermal, nvml;
};
MeterPlaces meter_places();

// Of the CPU, and of `device` where that is a GPU.
std::vector<DeviceMeters> meters_of_work_on(c10::Device device, const MeterPlaces& places = meter_places());
// Of the processor's packages the hottest, or the GPU's; `reason`: why there is none.
std::optional<double> celsius_of(c10::Device device, std::string& reason, const MeterPlaces& places = meter_places());

}  // namespace limbeck::energy
