#include <fmt/format.h>

#include "trainer/parallel/launch/environment_reader.h"
#include "trainer/parallel/launch/launchers.h"

namespace limbeck::parallel {
namespace {

constexpr const char* kPodAdvice =
    "run `torchrun --no-python limbeck train RECIPE` in the pod (tools/launch/kubernetes-pytorchjob.yaml)";

// PET_* are torchrun's own options as variables. Numbers, or what only torchrun can resolve: auto, gpu, 2:4.
void refuse_torchrun_options(const EnvironmentReader& reader) {
  for (const char* name : {"PET_NNODES", "PET_NPROC_PER_NODE"}) {
    const auto value = reader.text(name);
    if (!value || *value == "1") continue;
    reader.refuse(
        fmt::format("{}: the PET_ variables are options of torchrun, and this process was started without it: "
                    "wanted RANK and LOCAL_RANK, which torchrun sets",
                    reader.pair(name)));
  }
}

// What is in WORLD_SIZE: pods (old operators) or processes (newer ones)? One process a pod makes them the same number.
// More a pod need their number in the pod from a flag, and it must fit RANK: an operator's RANK, which counts pods,
// does not fit.
void check_processes_per_pod(const EnvironmentReader& reader, const TopologyRequest& request,
                             const Topology& topology) {
  const int each = *request.processes_per_node;
  const auto pods_word = reader.text("PET_NPROC_PER_NODE");  // auto, gpu: the flag says what that is
  if (pods_word && *pods_word != "auto" && *pods_word != "gpu" && reader.count("PET_NPROC_PER_NODE") != each) {
    reader.refuse(fmt::format("{} with --parallel.processes_per_node={}: wanted the same",
                              reader.pair("PET_NPROC_PER_NODE"), each));
  }
  if (each > 1 && !request.local_rank) {
    reader.refuse(fmt::format(
        "{} and {} without LOCAL_RANK, and --parallel.processes_per_node={}: RANK is the pod's number, the same "
        "for its {} processes: wanted LOCAL_RANK or --parallel.local_rank",
        reader.pair("RANK"), reader.pair("WORLD_SIZE"), each, each));
  }
  if (topology.size % each != 0 || topology.rank % each != request.local_rank.value_or(0)) {
    reader.refuse(
        fmt::format("{} and {} do not fit --parallel.processes_per_node={} --parallel.local_rank={}: wanted "
                    "both to count processes, node by node",
                    reader.pair("RANK"), reader.pair("WORLD_SIZE"), each, request.local_rank.value_or(0)));
  }
}

}  // namespace

std::optional<Topology> kubeflow_topology(const TopologyRequest& request, const Environment& environment) {
  const EnvironmentReader reader(environment, kPodAdvice);
  if (!reader.has("RANK") && !reader.has("WORLD_SIZE")) {
    refuse_torchrun_options(reader);
    return std::nullopt;
  }
  reader.require({"RANK", "WORLD_SIZE"});
  Topology topology;
  topology.launcher = Launcher::kKubeflow;
  topology.rank = *reader.index("RANK");
  topology.size = *reader.count("WORLD_SIZE");
  reader.require_below("RANK", topology.rank, "WORLD_SIZE", topology.size);
  if (topology.size > 1) reader.require({"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"});
  if (!request.processes_per_node) {
    refuse_torchrun_options(reader);
    if (topology.size > 1) {
      reader.refuse(
          fmt::format("{} without LOCAL_RANK: older Kubeflow operators count pods there, newer ones processes: wanted "
                      "--parallel.processes_per_node=1, if that is one process a pod; for more in each",
                      reader.pair("WORLD_SIZE")));
    }
  }
  if (request.processes_per_node) check_processes_per_pod(reader, request, topology);
  topology.local_size = request.processes_per_node.value_or(1);
  topology.local_rank = topology.rank % topology.local_size;
  topology.node = topology.rank / topology.local_size;
  topology.nodes = topology.size / topology.local_size;
  topology.master_host = reader.text("MASTER_ADDR").value_or("");
  topology.master_port = reader.port("MASTER_PORT").value_or(uint16_t{0});
  return topology;
}

}  // namespace limbeck::parallel
