#include "trainer/recipe/recipe_options.h"

namespace limbeck::recipe {
namespace {

constexpr int64_t kMostRanks = 1 << 20;

// Who this process is: different on every rank, so never part of a recipe. Launchers say it by environment variables.
void declare_explicit_rank(OptionTable& table) {
  table.add({.name = "parallel.rank",
             .kind = OptionKind::kInteger,
             .help = "Number of this process among all, from 0. It, world_size and master are given together, and then "
                     "win over what torchrun, Slurm or Kubeflow say; without a launcher's word, one process is alone.",
             .range = {0, kMostRanks - 1},
             .flag_only = true});
  table.add({.name = "parallel.world_size",
             .kind = OptionKind::kInteger,
             .help =
                 "Number of processes of the run, on all nodes together. For check alone: plan the memory of each of "
                 "so many.",
             .range = {1, kMostRanks},
             .flag_only = true});
  table.add({.name = "parallel.local_rank",
             .kind = OptionKind::kInteger,
             .help = "Number of this process on its node, from 0: which GPU it takes.",
             .range = {0, kMostRanks - 1},
             .flag_only = true});
  table.add({.name = "parallel.processes_per_node",
             .kind = OptionKind::kInteger,
             .help = "Number of processes on every node, where the launcher leaves that open.",
             .range = {1, kMostRanks},
             .flag_only = true});
  table.add({.name = "parallel.master",
             .help = "Where ranks meet: host and port of rank 0.",
             .value_name = "HOST:PORT",
             .flag_only = true});
}

}  // namespace

void declare_parallel_options(OptionTable& table) {
  table.group("Many ranks");
  declare_explicit_rank(table);
  table.add({.name = "parallel.reduce",
             .kind = OptionKind::kChoice,
             .fallback = "fast",
             .help = "How gradients of ranks are summed. tree: a fixed order of sums, so that 1, 2, 4 or 8 ranks give "
                     "the same bits.",
             .words = {"fast", "tree"}});
  table.add({.name = "parallel.zero",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "0: every rank holds everything; 1: optimizer states are divided among the ranks; 2: gradients "
                     "too; 3: weights too, the frozen teacher's included.",
             .range = {0, 3}});
  table.add({.name = "parallel.memory_limit",
             .kind = OptionKind::kNumber,
             .fallback = "0",
             .help = "GiB that the tensors of a rank may take on its device: a recipe whose plan needs more is refused "
                     "before it reads a weight; 0: no limit.",
             .interval = {.low = 0, .high = 1 << 20}});
  table.add({.name = "parallel.timeout",
             .kind = OptionKind::kNumber,
             .fallback = "600",
             .help = "Seconds: how long a rank waits for another one in the steady state.",
             .interval = {.low = 0, .above_low = true}});
  table.add({.name = "parallel.first_timeout",
             .kind = OptionKind::kNumber,
             .fallback = "1800",
             .help = "Seconds: the same for connecting and for the first step.",
             .interval = {.low = 0, .above_low = true}});
  table.add({.name = "parallel.check_replicas",
             .kind = OptionKind::kInteger,
             .fallback = "0",
             .help = "Every so many updates, compare a checksum of all weights over the ranks; 0: never.",
             .range = {0, 1 << 30}});
  table.add({.name = "parallel.verify_calls",
             .kind = OptionKind::kSwitch,
             .fallback = "false",
             .help =
                 "Before every operation between ranks, compare its kind, length and dtype over them: a mismatch is a "
                 "message that names the ranks. Slow."});
}

}  // namespace limbeck::recipe
