#include "trainer/parallel/launch/topology.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "modules/errors.h"
#include "trainer/parallel/launch/environment_reader.h"
#include "trainer/parallel/launch/launchers.h"
#include "trainer/recipe/message.h"
#include "trainer/recipe/value.h"

namespace limbeck::parallel {
namespace {

const char* launcher_words(Launcher launcher) {
  switch (launcher) {
    case Launcher::kNone:
      return "launched by nobody";
    case Launcher::kFlags:
      return "told by --parallel flags";
    case Launcher::kTorchrun:
      return "launched by torchrun";
    case Launcher::kSlurm:
      return "launched by Slurm";
    case Launcher::kKubeflow:
      return "launched by Kubeflow";
  }
  return "";
}

// HOST:PORT or [IPV6]:PORT
void read_master_flag(const std::string& master, Topology& topology) {
  const size_t colon = master.rfind(':');
  const std::string number = colon == std::string::npos ? "" : master.substr(colon + 1);
  const int64_t port = recipe::to_integer(number).value_or(0);
  std::string host = master.substr(0, colon == std::string::npos ? 0 : colon);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  if (host.empty() || (!bracketed && host.find_first_of(":[]") != std::string::npos) || port < 1 || port > 65535) {
    throw UsageError(
        fmt::format("--parallel.master={}: wanted HOST:PORT, the host of rank 0 and a free port of it from 1 "
                    "to 65535; type --parallel.master=localhost:29500",
                    recipe::shown(master)));
  }
  topology.master_host = host;
  topology.master_port = static_cast<uint16_t>(port);
}

void check_together(const TopologyRequest& request) {
  std::vector<std::string> given, missing;
  (request.rank ? given : missing).push_back("--parallel.rank");
  (request.world_size ? given : missing).push_back("--parallel.world_size");
  (!request.master.empty() ? given : missing).push_back("--parallel.master");
  if (missing.empty()) return;
  throw UsageError(fmt::format("{} given without {}: wanted all three or none; add {}=... or leave it to the launcher",
                               fmt::join(given, ", "), fmt::join(missing, ", "), fmt::join(missing, "=... ")));
}

// How many processes are on this node; told, unless everything is on one node anyway.
int processes_on_node(const TopologyRequest& request, const Topology& topology) {
  const std::string& host = topology.master_host;
  const bool one_node = topology.size == 1 || host == "localhost" || host == "127.0.0.1" || host == "::1";
  if (!request.processes_per_node && !one_node) {
    throw UsageError(
        fmt::format("--parallel.world_size={}: nothing says how many of them are on a node: add "
                    "--parallel.processes_per_node=N",
                    topology.size));
  }
  const int each = request.processes_per_node.value_or(topology.size);
  if (topology.size % each != 0) {
    throw UsageError(
        fmt::format("--parallel.world_size={} with --parallel.processes_per_node={}: wanted the same number "
                    "on every node; type a --parallel.world_size that is a multiple of {}",
                    topology.size, each, each));
  }
  return each;
}

std::optional<Topology> flags_topology(const TopologyRequest& request) {
  if (!request.rank && !request.world_size && request.master.empty()) return std::nullopt;
  check_together(request);
  Topology topology;
  topology.launcher = Launcher::kFlags;
  topology.rank = *request.rank;
  topology.size = *request.world_size;
  if (topology.rank >= topology.size) {
    throw UsageError(fmt::format("--parallel.rank={} with --parallel.world_size={}: wanted a rank from 0 to {}",
                                 topology.rank, topology.size, topology.size - 1));
  }
  read_master_flag(request.master, topology);
  topology.local_size = processes_on_node(request, topology);
  topology.local_rank = topology.rank % topology.local_size;
  topology.node = topology.rank / topology.local_size;
  topology.nodes = topology.size / topology.local_size;
  return topology;
}

// Flags that stand beside a launcher's word must say the same.
void check_flag(const std::string& flag, const std::optional<int>& given, int found, const Topology& topology) {
  if (!given || *given == found) return;
  const std::string said = fmt::format("--parallel.{}={}", flag, *given);
  if (topology.launcher == Launcher::kNone) {
    throw UsageError(fmt::format(
        "{}, but no launcher speaks in the environment and this is one process alone: wanted {}; start the "
        "ranks with torchrun (tools/launch/torchrun.sh), or give --parallel.rank, --parallel.world_size and "
        "--parallel.master too",
        said, found));
  }
  throw UsageError(fmt::format("{}, but this is {}: wanted {}; leave the flag out", said, topology.described(), found));
}

void check_devices(const TopologyRequest& request, const Topology& topology) {
  if (!request.devices || topology.local_rank < *request.devices) return;
  throw UsageError(fmt::format(
      "local rank {} of {} on this node ({}), but {} CUDA device(s) are visible: wanted one for each rank; "
      "start at most {} processes a node, check CUDA_VISIBLE_DEVICES (with srun: --gpus-per-node instead of "
      "--gpus-per-task), or type --device=cpu",
      topology.local_rank, topology.local_size, launcher_words(topology.launcher), *request.devices, *request.devices));
}

std::optional<int> flag_value(const recipe::Settings& settings, const std::string& name) {
  if (!settings.given(name) || settings.text(name).empty()) return std::nullopt;
  return static_cast<int>(settings.integer(name));
}

}  // namespace

std::string Topology::described() const {
  const std::string on = host.empty() ? "" : fmt::format(" (host {})", host);
  const bool ipv6 = master_host.find(':') != std::string::npos;
  std::string out = launcher == Launcher::kNone ? "one process alone" + on
                                                : fmt::format("rank {} of {}, local rank {} of {} on node {} of {}{}",
                                                              rank, size, local_rank, local_size, node, nodes, on);
  if (!master_host.empty())
    out += fmt::format(", store at {}{}{}:{}", ipv6 ? "[" : "", master_host, ipv6 ? "]" : "", master_port);
  if (launcher != Launcher::kNone) out += fmt::format(", {}", launcher_words(launcher));
  if (!remark.empty()) out += fmt::format(" ({})", remark);
  if (restart > 0) out += fmt::format(", restart {}", restart);
  return out;
}

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    if (const char* value = std::getenv(name.c_str())) return value;
    char host[256] = {};
    if (name == "HOSTNAME" && ::gethostname(host, sizeof host - 1) == 0) return host;
    return std::nullopt;
  };
}

TopologyRequest topology_request(const recipe::Settings& settings, std::optional<int> devices) {
  return {.rank = flag_value(settings, "parallel.rank"),
          .world_size = flag_value(settings, "parallel.world_size"),
          .local_rank = flag_value(settings, "parallel.local_rank"),
          .processes_per_node = flag_value(settings, "parallel.processes_per_node"),
          .master = settings.text("parallel.master"),
          .devices = devices};
}

Topology detect_topology(const TopologyRequest& request, const Environment& environment) {
  auto found = flags_topology(request);
  if (!found) found = torchrun_topology(request, environment);
  if (!found) found = slurm_topology(environment);
  if (!found) found = kubeflow_topology(request, environment);
  Topology topology = found.value_or(Topology{});
  if (topology.host.empty()) topology.host = environment("HOSTNAME").value_or("");
  check_flag("processes_per_node", request.processes_per_node, topology.local_size, topology);
  check_flag("local_rank", request.local_rank, topology.local_rank, topology);
  check_devices(request, topology);
  return topology;
}

std::string this_process() {
  char host[256] = "unknown";
  ::gethostname(host, sizeof(host) - 1);
  return fmt::format("host {}, process {}", host, ::getpid());
}

}  // namespace limbeck::parallel
