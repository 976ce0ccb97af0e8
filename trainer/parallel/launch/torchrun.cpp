#include <fmt/format.h>

#include "trainer/parallel/launch/environment_reader.h"
#include "trainer/parallel/launch/launchers.h"

namespace limbeck::parallel {
namespace {

constexpr const char* kTorchrunAdvice =
    "start it with `torchrun --no-python --nproc-per-node=N limbeck train RECIPE` (tools/launch/torchrun.sh), which "
    "sets "
    "them all, or unset them";

// The node count: torchrun says it; a hand-made environment is believed where its numbers allow one answer.
void read_nodes(const EnvironmentReader& reader, Topology& topology) {
  const int even = topology.size / topology.local_size;
  const auto nodes = reader.count("GROUP_WORLD_SIZE");
  if (!nodes && topology.size % topology.local_size != 0) {
    reader.refuse(
        fmt::format("{} is no multiple of {}, and GROUP_WORLD_SIZE does not say how many nodes there are: wanted the "
                    "same number of processes on every node",
                    reader.pair("WORLD_SIZE"), reader.pair("LOCAL_WORLD_SIZE")));
  }
  topology.nodes = nodes.value_or(even);
  topology.node = reader.index("GROUP_RANK").value_or(topology.rank / topology.local_size);
  reader.require_below("GROUP_RANK", topology.node, "GROUP_WORLD_SIZE", topology.nodes);
}

// One torchrun a node is how the two go together: as many nodes as tasks, fewer after an elastic restart, or a step for
// each torchrun. Several torchruns that know nothing of each other would each train the whole run into one folder.
void check_against_slurm(const EnvironmentReader& reader, const Environment& environment, Topology& topology) {
  const auto step = slurm_step(environment);
  if (!step) return;
  const bool by_hand = !reader.has("TORCHELASTIC_RUN_ID");  // RANK=$SLURM_PROCID, say
  if (by_hand && topology.size == step->tasks && reader.index("SLURM_PROCID") == topology.rank) return;
  const bool one_a_node = !by_hand && topology.nodes > 1 && topology.nodes <= step->tasks;
  if (!one_a_node && step->tasks > 1) {
    reader.refuse(fmt::format(
        "{} on {} node(s), by torchrun's variables, within a Slurm step of {} tasks on {} node(s): wanted one task, "
        "that "
        "is one torchrun, a node (srun --ntasks-per-node=1 tools/launch/torchrun_multi_node.sh ...), or one "
        "task a rank and no torchrun (srun limbeck train RECIPE)",
        reader.pair("WORLD_SIZE"), topology.nodes, step->tasks, step->nodes));
  }
  topology.remark = fmt::format("inside a Slurm step of {} tasks, torchrun's word counts", step->tasks);
}

}  // namespace

std::optional<Topology> torchrun_topology(const TopologyRequest& request, const Environment& environment) {
  const EnvironmentReader reader(environment, kTorchrunAdvice);
  if (!reader.has("LOCAL_RANK") && !reader.has("LOCAL_WORLD_SIZE") && !reader.has("TORCHELASTIC_RUN_ID"))
    return std::nullopt;
  reader.require({"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"});
  if (!request.processes_per_node) reader.require({"LOCAL_RANK", "LOCAL_WORLD_SIZE"});
  Topology topology;
  topology.launcher = Launcher::kTorchrun;
  topology.rank = *reader.index("RANK");
  topology.size = *reader.count("WORLD_SIZE");
  topology.local_rank = *reader.index("LOCAL_RANK");
  const auto local_size = reader.count("LOCAL_WORLD_SIZE");
  topology.local_size = local_size ? *local_size : *request.processes_per_node;
  reader.require_below("RANK", topology.rank, "WORLD_SIZE", topology.size);
  reader.require_below("LOCAL_RANK", topology.local_rank, "LOCAL_WORLD_SIZE", topology.local_size);
  if (topology.local_size > topology.size) {
    reader.refuse(
        fmt::format("LOCAL_WORLD_SIZE={} is more than WORLD_SIZE={}: wanted at most as many processes on a "
                    "node as there are in all",
                    topology.local_size, topology.size));
  }
  read_nodes(reader, topology);
  topology.master_host = *reader.text("MASTER_ADDR");
  topology.master_port = *reader.port("MASTER_PORT");
  topology.agent_store = reader.truth("TORCHELASTIC_USE_AGENT_STORE").value_or(false);
  topology.run_id = reader.text("TORCHELASTIC_RUN_ID").value_or("");
  topology.restart = reader.index("TORCHELASTIC_RESTART_COUNT").value_or(0);
  check_against_slurm(reader, environment, topology);
  return topology;
}

}  // namespace limbeck::parallel
