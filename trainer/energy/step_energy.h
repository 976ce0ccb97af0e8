// The energy of training's steps, for a log that has a line for some of them: the mean of those since the last line, of
// all ranks together. What comes between two steps (evaluations, checkpoints) is not theirs.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "trainer/energy/window_sampler.h"
#include "trainer/parallel/communicator.h"

namespace limbeck::energy {

// By which the ranks of one machine know each other, containers on it too.
std::string this_machine();
// Those of the devices that this rank counts: its own GPU, and the processor on the first rank of each machine alone,
// because a package's counter has what all ranks there draw. Every rank calls it.
std::vector<DeviceMeters> counted_here(const std::vector<DeviceMeters>& devices, const std::string& machine,
                                       parallel::Communicator& ranks);

class StepEnergy {
 public:
  // `devices`: those that this rank counts; none is a word too.
  explicit StepEnergy(std::vector<DeviceMeters> devices, Clock clock = steady_seconds);

  void begin_step();
  void end_step();
  // {"joules": ..., "joules_cpu": ..., "joules_cuda": ...} of a step, of all ranks, and begins anew. What is not known
  // on one of them is left out, and the sum with it. Every rank calls it.
  std::vector<std::pair<std::string, double>> take(parallel::Communicator& ranks);

 private:
  WindowSampler sampler_;
  std::map<std::string, double> used_;
  std::map<std::string, bool> unknown_;
  int64_t steps_ = 0;
};

}  // namespace limbeck::energy
