// Who this process is among the ranks of a run. Explicit flags win over torchrun's variables, those over Slurm's, those
// over Kubeflow's; nobody's word means one process alone. Nothing is guessed: what is half said, or said twice and
// differently, is a UsageError that names the variables and what to type.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "trainer/recipe/settings.h"

namespace limbeck::parallel {

enum class Launcher { kNone, kFlags, kTorchrun, kSlurm, kKubeflow };

struct Topology {
  int rank = 0, size = 1;
  int local_rank = 0, local_size = 1;  // on this node
  int node = 0, nodes = 1;
  std::string host = {};         // this node; "" when nobody says
  std::string master_host = {};  // where the store is; "" and 0 only for one process alone
  uint16_t master_port = 0;
  bool agent_store = false;  // the launcher hosts the store, and every rank is its client; else rank 0 hosts it
  std::string run_id = {};   // the same after a restart; "" when the launcher gives none
  int restart = 0;           // how often the launcher has started this run again
  Launcher launcher = Launcher::kNone;
  std::string remark = {};  // what described() adds: two launchers at once

  // "rank 3 of 8, local rank 1 of 4 on node 0 of 2 (host nodeA), store at nodeA:29500, launched by torchrun, restart 1"
  std::string described() const;
};

// A variable's value; none when it is not set. An empty one counts as not set: `RANK= limbeck train`.
using Environment = std::function<std::optional<std::string>(const std::string&)>;

// getenv; HOSTNAME, where a shell does not export it, is the machine's own name.
Environment process_environment();

// "host nodeA, process 4711": how messages name a process.
std::string this_process();

// What flags say, and how many accelerators this process sees.
struct TopologyRequest {
  std::optional<int> rank = {}, world_size = {}, local_rank = {}, processes_per_node = {};
  std::string master = {};          // HOST:PORT
  std::optional<int> devices = {};  // none: ranks take no device of their own (--device=cpu)
};

TopologyRequest topology_request(const recipe::Settings& settings, std::optional<int> devices);

Topology detect_topology(const TopologyRequest& request, const Environment& environment);

}  // namespace limbeck::parallel
