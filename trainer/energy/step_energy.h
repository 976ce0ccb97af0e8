// The energy of training's steps, for a log that has a line for some of them: the mean of those since the last line.
// What comes between two steps (evaluations, checkpoints) is not theirs.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/energy/energy_window.h"

namespace limbeck::energy {

class StepEnergy {
 public:
  explicit StepEnergy(std::vector<DeviceMeters> devices, Clock clock = steady_seconds);

  void begin_step();
  void end_step();
  // {"joules": ..., "joules_cpu": ..., "joules_cuda": ...} of a step, and begins anew. What is not known is left out,
  // and the sum with it.
  std::vector<std::pair<std::string, double>> take();

 private:
  std::vector<DeviceMeters> devices_;
  Clock clock_;
  std::optional<EnergyWindow> window_;
  std::map<std::string, double> used_;
  std::map<std::string, bool> unknown_;
  int64_t steps_ = 0;
};

}  // namespace limbeck::energy
