// What each launcher's environment says, one function a launcher; none when its variables are not there. Called in the
// order of topology.h; checks within one launcher are made here, those against flags and devices in topology.cpp.
#pragma once
#include <optional>
#include <string>

#include "trainer/parallel/launch/topology.h"

namespace limbeck::parallel {

std::optional<Topology> torchrun_topology(const TopologyRequest& request, const Environment& environment);
std::optional<Topology> slurm_topology(const Environment& environment);
std::optional<Topology> kubeflow_topology(const TopologyRequest& request, const Environment& environment);

// The Slurm step this process runs in. srun makes one; a batch script and salloc's shell are none.
struct SlurmStep {
  int tasks = 1, nodes = 1;
};
std::optional<SlurmStep> slurm_step(const Environment& environment);

}  // namespace limbeck::parallel
