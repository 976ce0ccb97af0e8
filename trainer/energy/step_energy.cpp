#include "trainer/energy/step_energy.h"

namespace limbeck::energy {

StepEnergy::StepEnergy(std::vector<DeviceMeters> devices, Clock clock)
    : devices_(std::move(devices)), clock_(std::move(clock)) {}

void StepEnergy::begin_step() { window_.emplace(devices_, clock_); }

void StepEnergy::end_step() {
  for (const auto& [device, joules] : window_->end().by_device) {
    unknown_[device] = unknown_[device] || !joules.value;
    used_[device] += joules.value.value_or(0);
  }
  window_.reset();
  ++steps_;
}

std::vector<std::pair<std::string, double>> StepEnergy::take() {
  std::vector<std::pair<std::string, double>> values;
  double sum = 0;
  bool all = steps_ > 0;
  for (const auto& [device, joules] : used_) {
    all = all && !unknown_.at(device);
    if (unknown_.at(device)) continue;
    const double of_a_step = joules / static_cast<double>(steps_);
    values.emplace_back("joules_" + device.substr(0, device.find(':')), of_a_step);
    sum += of_a_step;
  }
  if (all) values.insert(values.begin(), {"joules", sum});
  used_.clear(), unknown_.clear();
  steps_ = 0;
  return values;
}

}  // namespace limbeck::energy
