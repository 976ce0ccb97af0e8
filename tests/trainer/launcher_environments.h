// The environments that launchers make, as they really look, and what becomes of them: a topology or a refusal.
#pragma once
#include <map>
#include <string>

#include "message_of.h"
#include "trainer/parallel/launch/topology.h"

namespace limbeck::parallel {

using Variables = std::map<std::string, std::string>;

inline Environment environment_of(const Variables& variables) {
  return [variables](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  };
}

// `base` with some variables changed; "-" takes one away.
inline Variables changed(Variables base, const Variables& by) {
  for (const auto& [name, value] : by) {
    base[name] = value;
    if (value == "-") base.erase(name);
  }
  return base;
}

inline std::string described(const Variables& variables, const TopologyRequest& request = {}) {
  return detect_topology(request, environment_of(variables)).described();
}

inline std::string refusal(const Variables& variables, const TopologyRequest& request = {}) {
  return test::message_of([&] { detect_topology(request, environment_of(variables)); });
}

// The last of 2 nodes with 4 processes each.
inline const Variables kTorchrun = {{"RANK", "5"},
                                    {"LOCAL_RANK", "1"},
                                    {"WORLD_SIZE", "8"},
                                    {"LOCAL_WORLD_SIZE", "4"},
                                    {"GROUP_RANK", "1"},
                                    {"GROUP_WORLD_SIZE", "2"},
                                    {"MASTER_ADDR", "nodeA"},
                                    {"MASTER_PORT", "29500"},
                                    {"TORCHELASTIC_RUN_ID", "run7"},
                                    {"TORCHELASTIC_RESTART_COUNT", "0"},
                                    {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                                    {"HOSTNAME", "nodeB"}};
inline const Variables kSlurm = {{"SLURM_JOB_ID", "1234"},
                                 {"SLURM_STEP_ID", "0"},
                                 {"SLURM_PROCID", "5"},
                                 {"SLURM_NTASKS", "8"},
                                 {"SLURM_LOCALID", "1"},
                                 {"SLURM_NTASKS_PER_NODE", "4"},
                                 {"SLURM_STEP_TASKS_PER_NODE", "4(x2)"},
                                 {"SLURM_NODEID", "1"},
                                 {"SLURM_NNODES", "2"},
                                 {"SLURM_STEP_NODELIST", "gpu[07-08]"},
                                 {"SLURM_JOB_NODELIST", "gpu[01-08]"}};
// What sbatch gives its script on the first node.
inline const Variables kBatchScript = {{"SLURM_JOB_ID", "1234"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"},
                                       {"SLURM_NODEID", "0"},    {"SLURM_NTASKS", "8"}, {"SLURM_JOB_NODELIST", "a,b"},
                                       {"SLURM_NNODES", "2"}};
// A worker pod of an operator: RANK is the pod's number.
inline const Variables kPod = {
    {"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "job-master-0"}, {"MASTER_PORT", "23456"}};

}  // namespace limbeck::parallel
