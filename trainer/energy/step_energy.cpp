#include "trainer/energy/step_energy.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>

#include "trainer/parallel/sums/named_sums.h"

namespace limbeck::energy {

namespace {

// "cuda:1" is a GPU like "cuda:0".
std::string kind_of(const std::string& device) { return device.substr(0, device.find(':')); }

const std::string kJoules = "joules.", kUnknown = "unknown.";

}  // namespace

std::string this_machine() {
  std::string id;
  if (std::ifstream file("/proc/sys/kernel/random/boot_id"); std::getline(file, id)) return id;
  char name[256] = {};
  ::gethostname(name, sizeof(name) - 1);
  return name;
}

std::vector<DeviceMeters> counted_here(const std::vector<DeviceMeters>& devices, const std::string& machine,
                                       parallel::Communicator& ranks) {
  const std::vector<std::string> machines = ranks.all_gather(machine);
  const bool first =
      std::find(machines.begin(), machines.begin() + ranks.rank(), machine) == machines.begin() + ranks.rank();
  std::vector<DeviceMeters> counted;
  for (const DeviceMeters& one : devices) {
    if (first || one.device != "cpu") counted.push_back(one);
  }
  return counted;
}

StepEnergy::StepEnergy(std::vector<DeviceMeters> devices, Clock clock)
    : sampler_(std::move(devices), std::move(clock)) {}

void StepEnergy::begin_step() { sampler_.begin(); }

void StepEnergy::end_step() {
  for (const auto& [device, joules] : sampler_.end().by_device) {
    unknown_[device] = unknown_[device] || !joules.value;
    used_[device] += joules.value.value_or(0);
  }
  ++steps_;
}

std::vector<std::pair<std::string, double>> StepEnergy::take(parallel::Communicator& ranks) {
  parallel::NamedSums sums;
  for (const auto& [device, joules] : used_) {
    sums.add(kJoules + kind_of(device), joules / static_cast<double>(steps_));
    if (unknown_.at(device)) sums.add(kUnknown + kind_of(device), 1);
  }
  used_.clear(), unknown_.clear();
  steps_ = 0;
  sums.all_reduce(ranks);
  std::set<std::string> kinds;
  for (const std::string& name : sums.names()) {
    if (name.starts_with(kJoules)) kinds.insert(name.substr(kJoules.size()));
  }
  std::vector<std::pair<std::string, double>> values;
  double sum = 0;
  bool all = !kinds.empty();
  for (const std::string& kind : kinds) {
    const bool known = sums.value(kUnknown + kind) == 0;
    all = all && known;
    if (!known) continue;
    values.emplace_back("joules_" + kind, sums.value(kJoules + kind));
    sum += values.back().second;
  }
  if (all) values.insert(values.begin(), {"joules", sum});
  return values;
}

}  // namespace limbeck::energy
