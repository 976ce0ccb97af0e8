#include "trainer/energy/machine_meters.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "kernels/operator/cuda_library.h"
#include "trainer/energy/kernel_file.h"
#include "trainer/energy/nvml_library.h"
#include "trainer/energy/perf_meters.h"
#include "trainer/energy/rapl_meters.h"

namespace limbeck::energy {
namespace {

std::filesystem::path place_of(const char* variable, const char* usual) {
  const char* named = std::getenv(variable);
  return named == nullptr || *named == '\0' ? usual : named;
}

DeviceMeters of_cpu(const MeterPlaces& places) {
  DeviceMeters files = rapl_meters(places.powercap);
  if (files.absent.empty()) return files;
  DeviceMeters events = perf_meters(places.power_events);
  if (events.absent.empty()) return events;
  return {"cpu", {}, files.absent + "; " + events.absent};
}

int index_of(c10::Device device) { return device.has_index() ? device.index() : 0; }

DeviceMeters of_gpu(c10::Device device, const MeterPlaces& places) {
  const std::string name = fmt::format("cuda:{}", index_of(device)), bus = kernels::cuda_bus_place(index_of(device));
  if (bus.empty()) return {name, {}, "its place on the bus, by which NVML knows it, is not known"};
  std::string fault;
  const auto library = NvmlLibrary::open(places.nvml, fault);
  return library == nullptr ? DeviceMeters{name, {}, fault} : library->meters(bus, name);
}

}  // namespace

MeterPlaces meter_places() {
  return {.powercap = place_of("LIMBECK_POWERCAP", kPowercap),
          .power_events = place_of("LIMBECK_POWER_EVENTS", kPowerEvents),
          .thermal = place_of("LIMBECK_THERMAL", "/sys/class/thermal"),
          .nvml = place_of("LIMBECK_NVML", kNvml)};
}

std::vector<DeviceMeters> meters_of_work_on(c10::Device device, const MeterPlaces& places) {
  std::vector<DeviceMeters> found{of_cpu(places)};
  if (device.is_cuda()) found.push_back(of_gpu(device, places));
  return found;
}

std::optional<double> celsius_of(c10::Device device, std::string& reason, const MeterPlaces& places) {
  if (device.is_cuda()) {
    const auto library = NvmlLibrary::open(places.nvml, reason);
    const auto degrees = library ? library->celsius(kernels::cuda_bus_place(index_of(device))) : std::nullopt;
    if (library && !degrees) reason = "NVML gives no temperature of this GPU";
    return degrees;
  }
  std::optional<double> hottest;
  std::error_code absent;
  for (const auto& zone : std::filesystem::directory_iterator(places.thermal, absent)) {
    const std::string type = kernel_line(zone.path() / "type").value_or("");
    if (type != "x86_pkg_temp" && !type.starts_with("cpu")) continue;
    const Reading millidegrees = kernel_number(zone.path() / "temp");
    if (millidegrees.fault.empty())
      hottest = std::max(hottest.value_or(0), static_cast<double>(millidegrees.microjoules) / 1000);
  }
  if (!hottest) reason = fmt::format("{} has no zone of a processor (x86_pkg_temp)", places.thermal.string());
  return hottest;
}

}  // namespace limbeck::energy
