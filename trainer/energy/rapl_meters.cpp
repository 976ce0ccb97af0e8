#include "trainer/energy/rapl_meters.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "trainer/energy/kernel_file.h"

namespace limbeck::energy {
namespace {

namespace fs = std::filesystem;

constexpr double kRaplUpdate = 0.001;      // the registers are updated about every millisecond
constexpr double kMostOfPackage = 2000.0;  // several times what the largest packages draw

class RaplMeter : public EnergyMeter {
 public:
  RaplMeter(const fs::path& zone, const std::string& part, uint64_t range)
      : file_(zone / "energy_uj"), name_(fmt::format("RAPL {} ({})", part, zone.string())), range_(range) {}

  const std::string& name() const override { return name_; }
  const std::string& device() const override { return device_; }
  Reading read() override { return kernel_number(file_); }
  uint64_t range() const override { return range_; }
  double update_seconds() const override { return kRaplUpdate; }
  double most_watts() const override { return kMostOfPackage; }

 private:
  fs::path file_;
  std::string name_, device_ = "cpu";
  uint64_t range_;
};

// "intel-rapl:0", "intel-rapl:0:1": the driver's name on AMD's processors too. "intel-rapl-mmio:0" shows a package a
// second time.
bool is_zone(const std::string& name) { return name.starts_with("intel-rapl:"); }

// By their names, which the flat folder and the nested ones share.
std::map<std::string, fs::path> zones_of(const fs::path& root) {
  std::map<std::string, fs::path> found;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator(root, absent)) {
    if (!is_zone(entry.path().filename().string())) continue;
    found.emplace(entry.path().filename().string(), entry.path());
    for (const auto& inner : fs::directory_iterator(entry.path(), absent)) {
      if (is_zone(inner.path().filename().string())) {
        found.emplace(inner.path().filename().string(), inner.path());
      }
    }
  }
  return found;
}

}  // namespace

DeviceMeters rapl_meters(const fs::path& root) {
  DeviceMeters found{"cpu", {}, ""};
  std::error_code ignored;
  if (!fs::is_directory(root, ignored)) {
    found.absent = fmt::format(
        "{} is not there: the kernel shows no RAPL counters, as in most virtual machines and "
        "containers",
        root.string());
    return found;
  }
  bool has_package = false;
  for (const auto& [name, zone] : zones_of(root)) {
    const std::string part = kernel_line(zone / "name").value_or("");
    const bool package = part.starts_with("package");
    if (!package && part != "dram") continue;  // core, uncore: parts of a package; psys: the whole board with it
    has_package = has_package || package;
    const Reading range = kernel_number(zone / "max_energy_range_uj"), energy = kernel_number(zone / "energy_uj");
    for (const Reading& reading : {range, energy}) {
      if (reading.fault.empty()) continue;
      return {"cpu", {}, reading.fault};
    }
    found.meters.push_back(std::make_shared<RaplMeter>(zone, part, range.microjoules));
  }
  if (has_package) return found;
  return {"cpu", {}, fmt::format("{} has no zone of a package (intel-rapl:N with a name)", root.string())};
}

}  // namespace limbeck::energy
