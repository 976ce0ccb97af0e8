#include <fmt/format.h>

#include "trainer/parallel/launch/environment_reader.h"
#include "trainer/parallel/launch/launchers.h"
#include "trainer/parallel/launch/slurm_lists.h"

namespace limbeck::parallel {
namespace {

constexpr const char* kSrunAdvice = "type `srun limbeck train RECIPE` (tools/launch/slurm.sbatch)";
constexpr int64_t kMostIds = 0xffffffff;
// Slurm numbers what is no step of srun's (a batch script, salloc's shell) from the top.
constexpr int64_t kFirstIdOfNoStep = 0xfffffff0;
constexpr int64_t kFirstPort = 29500, kPorts = 3000;  // below 32768, where Linux takes ports for outgoing connections

bool in_step(const EnvironmentReader& reader) {
  const auto step = reader.integer("SLURM_STEP_ID", 0, kMostIds);
  return step && *step < kFirstIdOfNoStep;
}

// Of this step; the names without STEP are of the whole job in some places, but older Slurm has no others.
int tasks_of(const EnvironmentReader& reader) {
  const auto tasks = reader.count("SLURM_STEP_NUM_TASKS");
  if (!tasks) reader.require({"SLURM_STEP_ID", "SLURM_NTASKS"});
  return tasks ? *tasks : *reader.count("SLURM_NTASKS");
}

int nodes_of(const EnvironmentReader& reader) {
  const auto nodes = reader.count("SLURM_STEP_NUM_NODES");
  if (!nodes) reader.require({"SLURM_STEP_ID", "SLURM_NNODES"});
  return nodes ? *nodes : *reader.count("SLURM_NNODES");
}

// A lone process in a batch script has SLURM_PROCID=0 and SLURM_NTASKS=8, and is no rank 0 of 8: it would wait for 7
// others that nobody starts, or train alone what 8 were allocated for.
void refuse_batch_script(const EnvironmentReader& reader) {
  const int nodes = reader.count("SLURM_NNODES").value_or(1);
  const int tasks = reader.count("SLURM_NTASKS").value_or(nodes * reader.count("SLURM_NTASKS_PER_NODE").value_or(1));
  if (tasks == 1) return;
  reader.refuse(fmt::format(
      "{} for {} tasks, but this process runs in the batch script itself (no SLURM_STEP_ID), not under srun: "
      "wanted one process a task, or for one alone --parallel.rank=0 --parallel.world_size=1 "
      "--parallel.master=localhost:29500",
      reader.pair("SLURM_JOB_ID"), tasks));
}

int local_tasks(const EnvironmentReader& reader, const Topology& topology) {
  const std::string lists = "SLURM_STEP_TASKS_PER_NODE";
  if (const auto list = reader.text(lists)) {
    const auto tasks = expanded_tasks_per_node(lists, *list);
    int64_t sum = 0;
    for (const int count : tasks) sum += count;
    if (static_cast<int>(tasks.size()) != topology.nodes || sum != topology.size) {
      reader.refuse(
          fmt::format("{} stands for {} tasks on {} nodes, but the step has {} tasks on {} nodes: wanted the same",
                      reader.pair(lists), sum, tasks.size(), topology.size, topology.nodes));
    }
    return tasks[static_cast<size_t>(topology.node)];
  }
  const auto each = reader.count("SLURM_NTASKS_PER_NODE");
  if (topology.size % topology.nodes != 0 || (each && *each * int64_t{topology.nodes} != topology.size)) {
    reader.refuse(
        fmt::format("{} tasks on {} nodes, {}: wanted the same number of tasks on every node (--ntasks-per-node)",
                    topology.size, topology.nodes, reader.pair("SLURM_NTASKS_PER_NODE")));
  }
  return topology.size / topology.nodes;
}

// The store is on the first host, where rank 0 is. Ports differ by job and step, so that jobs that share a node do not
// meet in one store.
void read_master(const EnvironmentReader& reader, Topology& topology) {
  const bool of_step = reader.has("SLURM_STEP_NODELIST");
  const std::string name = of_step ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST";
  if (topology.size > 1) reader.require({"SLURM_STEP_ID", "SLURM_JOB_ID", name});
  if (const auto list = reader.text(name)) {
    const auto hosts = expanded_hosts(name, *list);
    if (of_step && static_cast<int>(hosts.size()) != topology.nodes) {
      reader.refuse(fmt::format("{} names {} hosts, but the step has {} nodes: wanted the same", reader.pair(name),
                                hosts.size(), topology.nodes));
    }
    topology.master_host = hosts.front();
    if (of_step) topology.host = hosts[static_cast<size_t>(topology.node)];
  }
  const int64_t job = reader.integer("SLURM_JOB_ID", 0, kMostIds).value_or(0);
  const int64_t step = reader.integer("SLURM_STEP_ID", 0, kMostIds).value_or(0);
  const auto derived = static_cast<uint16_t>(kFirstPort + (job + 97 * step) % kPorts);
  topology.master_host = reader.text("MASTER_ADDR").value_or(topology.master_host);  // another network, say
  topology.master_port = reader.port("MASTER_PORT").value_or(derived);
  topology.run_id = fmt::format("{}.{}", job, step);
}

// Scripts export WORLD_SIZE for srun's tasks to read: fine while it says the same.
void check_exported(const EnvironmentReader& reader, const Topology& topology) {
  const auto size = reader.count("WORLD_SIZE");
  const auto rank = reader.index("RANK");
  if (size && *size != topology.size) {
    reader.refuse(fmt::format("{}, but the Slurm step has {} tasks: wanted the same, or WORLD_SIZE unset",
                              reader.pair("WORLD_SIZE"), topology.size));
  }
  if (rank && *rank != topology.rank) {
    reader.refuse(
        fmt::format("{}, but {}: wanted the same, or RANK unset", reader.pair("RANK"), reader.pair("SLURM_PROCID")));
  }
}

}  // namespace

std::optional<SlurmStep> slurm_step(const Environment& environment) {
  const EnvironmentReader reader(environment, kSrunAdvice);
  if (!in_step(reader)) return std::nullopt;
  return SlurmStep{.tasks = tasks_of(reader), .nodes = nodes_of(reader)};
}

std::optional<Topology> slurm_topology(const Environment& environment) {
  const EnvironmentReader reader(environment, kSrunAdvice);
  const auto step = slurm_step(environment);
  if (!step) {
    if (reader.has("SLURM_JOB_ID")) refuse_batch_script(reader);
    return std::nullopt;
  }
  reader.require({"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"});
  Topology topology;
  topology.launcher = Launcher::kSlurm;
  topology.rank = *reader.index("SLURM_PROCID");
  topology.local_rank = *reader.index("SLURM_LOCALID");
  topology.node = *reader.index("SLURM_NODEID");
  topology.size = step->tasks;
  topology.nodes = step->nodes;
  topology.restart = reader.index("SLURM_RESTART_COUNT").value_or(0);
  reader.require_below("SLURM_PROCID", topology.rank, "SLURM_NTASKS", topology.size);
  reader.require_below("SLURM_NODEID", topology.node, "SLURM_NNODES", topology.nodes);
  topology.local_size = local_tasks(reader, topology);
  reader.require_below("SLURM_LOCALID", topology.local_rank, "SLURM_NTASKS_PER_NODE", topology.local_size);
  read_master(reader, topology);
  topology.host = reader.text("SLURMD_NODENAME").value_or(topology.host);
  check_exported(reader, topology);
  return topology;
}

}  // namespace limbeck::parallel
