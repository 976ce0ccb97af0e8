// Environments and flags that contradict themselves or each other: each is refused, and says what to type.
#include <gtest/gtest.h>

#include "launcher_environments.h"

namespace limbeck::parallel {
namespace {

struct Refused {
  Variables change;
  std::string message;  // a part of it
};

TEST(TopologyRefusal, TorchrunContradictionsAreRefused) {
  const std::string type = "; start it with `torchrun --no-python --nproc-per-node=N limbeck train RECIPE`";
  const Refused table[] = {
      {{{"RANK", "8"}}, "2: environment: RANK=8 with WORLD_SIZE=8: wanted RANK from 0 to 7" + type},
      {{{"LOCAL_RANK", "4"}},
       "environment: LOCAL_RANK=4 with LOCAL_WORLD_SIZE=4: wanted LOCAL_RANK from 0 to 3" + type},
      {{{"GROUP_RANK", "2"}},
       "environment: GROUP_RANK=2 with GROUP_WORLD_SIZE=2: wanted GROUP_RANK from 0 to 1" + type},
      {{{"RANK", "one"}}, "environment: RANK=one: wanted a whole number from 0 to 1048575" + type},
      {{{"RANK", "-1"}}, "environment: RANK=-1: wanted a whole number from 0 to"},
      {{{"WORLD_SIZE", "8.0"}}, "environment: WORLD_SIZE=8.0: wanted a whole number from 1 to"},
      {{{"WORLD_SIZE", "99999999999999999999"}}, "WORLD_SIZE=99999999999999999999: wanted a whole number from 1 to"},
      {{{"MASTER_PORT", "65536"}}, "environment: MASTER_PORT=65536: wanted a whole number from 1 to 65535"},
      {{{"TORCHELASTIC_USE_AGENT_STORE", "maybe"}}, "TORCHELASTIC_USE_AGENT_STORE=maybe: wanted True or False"},
      {{{"WORLD_SIZE", "-"}},
       "environment: RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT set without WORLD_SIZE: wanted all"},
      {{{"MASTER_ADDR", ""}, {"MASTER_PORT", "-"}},
       "RANK, LOCAL_RANK, WORLD_SIZE set without MASTER_ADDR, MASTER_PORT"},
      {{{"LOCAL_WORLD_SIZE", "-"}}, "environment: LOCAL_RANK set without LOCAL_WORLD_SIZE: wanted all of"},
      {{{"LOCAL_RANK", "-"}}, "set without LOCAL_RANK: wanted all of"},
      {{{"LOCAL_WORLD_SIZE", "9"}}, "LOCAL_WORLD_SIZE=9 is more than WORLD_SIZE=8"},
      {{{"GROUP_WORLD_SIZE", "-"}, {"LOCAL_WORLD_SIZE", "3"}},
       "WORLD_SIZE=8 is no multiple of LOCAL_WORLD_SIZE=3, and"},
  };
  for (const auto& [change, message] : table) {
    const std::string came = refusal(changed(kTorchrun, change));
    EXPECT_NE(came.find(message), std::string::npos) << came << "\nwanted " << message;
    EXPECT_EQ(came.find('\n'), std::string::npos);
  }
}

TEST(TopologyRefusal, TorchrunsVariablesSetFromSlurmsMustAgree) {
  Variables by_hand = kSlurm;
  by_hand.insert({{"RANK", "5"},
                  {"LOCAL_RANK", "1"},
                  {"WORLD_SIZE", "8"},
                  {"LOCAL_WORLD_SIZE", "4"},
                  {"MASTER_ADDR", "a"},
                  {"MASTER_PORT", "29501"}});
  EXPECT_EQ(described(by_hand),
            "rank 5 of 8, local rank 1 of 4 on node 1 of 2, store at a:29501, launched by torchrun");
  EXPECT_NE(refusal(changed(by_hand, {{"WORLD_SIZE", "16"}}))
                .find("WORLD_SIZE=16 on 4 node(s), by torchrun's variables, within a"),
            std::string::npos);
}

TEST(TopologyRefusal, SlurmContradictionsAreRefused) {
  const std::string type = "; type `srun limbeck train RECIPE`";
  const Refused table[] = {
      {{{"SLURM_PROCID", "8"}},
       "2: environment: SLURM_PROCID=8 with SLURM_NTASKS=8: wanted SLURM_PROCID from 0 to 7" + type},
      {{{"SLURM_LOCALID", "4"}},
       "SLURM_LOCALID=4 with SLURM_NTASKS_PER_NODE=4: wanted SLURM_LOCALID from 0 to 3" + type},
      {{{"SLURM_NODEID", "2"}},
       "environment: SLURM_NODEID=2 with SLURM_NNODES=2: wanted SLURM_NODEID from 0 to 1" + type},
      {{{"SLURM_PROCID", "x"}}, "environment: SLURM_PROCID=x: wanted a whole number from 0 to"},
      {{{"SLURM_PROCID", "-"}}, "SLURM_STEP_ID, SLURM_LOCALID, SLURM_NODEID set without SLURM_PROCID: wanted all of"},
      {{{"SLURM_NTASKS", "-"}}, "SLURM_STEP_ID set without SLURM_NTASKS"},
      {{{"SLURM_STEP_NODELIST", "-"}, {"SLURM_JOB_NODELIST", "-"}}, "SLURM_JOB_ID set without SLURM_JOB_NODELIST"},
      {{{"SLURM_STEP_NODELIST", "gpu[1-3]"}}, "SLURM_STEP_NODELIST=gpu[1-3] names 3 hosts, but the step has 2 nodes"},
      {{{"SLURM_STEP_TASKS_PER_NODE", "4(x3)"}},
       "SLURM_STEP_TASKS_PER_NODE=4(x3) stands for 12 tasks on 3 nodes, but the step has 8 tasks on 2 nodes"},
      {{{"SLURM_STEP_TASKS_PER_NODE", "-"}, {"SLURM_NTASKS_PER_NODE", "2"}},
       "8 tasks on 2 nodes, SLURM_NTASKS_PER_NODE=2: wanted the same number of tasks on every node"},
      {{{"SLURM_STEP_TASKS_PER_NODE", "-"}, {"SLURM_NTASKS_PER_NODE", "-"}, {"SLURM_NTASKS", "7"}},
       "7 tasks on 2 nodes, SLURM_NTASKS_PER_NODE is not set: wanted the same number of tasks on every node"},
      {{{"WORLD_SIZE", "4"}},
       "WORLD_SIZE=4, but the Slurm step has 8 tasks: wanted the same, or WORLD_SIZE unset" + type},
      {{{"RANK", "4"}}, "RANK=4, but SLURM_PROCID=5: wanted the same, or RANK unset" + type},
  };
  for (const auto& [change, message] : table) {
    const std::string came = refusal(changed(kSlurm, change));
    EXPECT_NE(came.find(message), std::string::npos) << came << "\nwanted " << message;
  }
}

TopologyRequest pod_request(int processes_per_node, std::optional<int> local_rank = {}) {
  TopologyRequest request;
  request.processes_per_node = processes_per_node;
  request.local_rank = local_rank;
  return request;
}

TEST(TopologyRefusal, PodsThatCountWeCannotKnowHowAreRefused) {
  const std::string type = "; run `torchrun --no-python limbeck train RECIPE` in the pod";
  struct Row {
    Variables change;
    TopologyRequest request;
    std::string message;
  };
  const Row table[] = {
      {{},
       {},
       "2: environment: WORLD_SIZE=2 without LOCAL_RANK: older Kubeflow operators count pods there, newer ones "
       "processes: wanted --parallel.processes_per_node=1, if that is one process a pod; for more in each" +
           type},
      {{{"WORLD_SIZE", "8"}, {"PET_NPROC_PER_NODE", "4"}, {"PET_NNODES", "2"}},
       {},
       "environment: PET_NNODES=2: the PET_ variables are options of torchrun, and this process was started without "
       "it"},
      {{{"WORLD_SIZE", "8"}},
       pod_request(4),
       "RANK=1 and WORLD_SIZE=8 without LOCAL_RANK, and --parallel.processes_per_node=4: RANK is the pod's number, the "
       "same for its 4 processes: wanted LOCAL_RANK or --parallel.local_rank" +
           type},
      {{{"WORLD_SIZE", "8"}},
       pod_request(4, 2),
       "RANK=1 and WORLD_SIZE=8 do not fit --parallel.processes_per_node=4 --parallel.local_rank=2"},
      {{}, pod_request(4, 1), "RANK=1 and WORLD_SIZE=2 do not fit"},
      {{{"PET_NPROC_PER_NODE", "8"}},
       pod_request(1),
       "PET_NPROC_PER_NODE=8 with --parallel.processes_per_node=1: wanted the same" + type},
      {{{"RANK", "2"}}, pod_request(1), "RANK=2 with WORLD_SIZE=2: wanted RANK from 0 to 1" + type},
      {{{"WORLD_SIZE", "-"}}, {}, "RANK set without WORLD_SIZE: wanted all of RANK, WORLD_SIZE" + type},
      {{{"RANK", "-"}}, {}, "WORLD_SIZE set without RANK"},
      {{{"MASTER_ADDR", "-"}}, pod_request(1), "RANK, WORLD_SIZE, MASTER_PORT set without MASTER_ADDR"},
  };
  for (const auto& [change, request, message] : table) {
    const std::string came = refusal(changed(kPod, change), request);
    EXPECT_NE(came.find(message), std::string::npos) << came << "\nwanted " << message;
  }
  EXPECT_NE(refusal({{"PET_NPROC_PER_NODE", "auto"}}).find("PET_NPROC_PER_NODE=auto: the PET_ variables"),
            std::string::npos);
}

TEST(TopologyRefusal, FlagsHalfGivenOrContradictingAreRefused) {
  const std::pair<TopologyRequest, std::string> table[] = {
      {{.rank = 0},
       "2: --parallel.rank given without --parallel.world_size, --parallel.master: wanted all three or none; "
       "add --parallel.world_size=... --parallel.master=... or leave it to the launcher"},
      {{.world_size = 2, .master = "a:1"}, "--parallel.world_size, --parallel.master given without --parallel.rank"},
      {{.rank = 4, .world_size = 4, .master = "localhost:1"},
       "--parallel.rank=4 with --parallel.world_size=4: wanted a rank from 0 to 3"},
      {{.rank = 0, .world_size = 4, .master = "nodeA:1"},
       "--parallel.world_size=4: nothing says how many of them are on a node: add --parallel.processes_per_node=N"},
      {{.rank = 0, .world_size = 4, .processes_per_node = 3, .master = "a:1"},
       "--parallel.world_size=4 with --parallel.processes_per_node=3: wanted the same number on every node"},
      {{.rank = 1, .world_size = 4, .local_rank = 0, .master = "localhost:1"},
       "--parallel.local_rank=0, but this is rank 1 of 4, local rank 1 of 4 on node 0 of 1, store at localhost:1, told "
       "by "
       "--parallel flags: wanted 1; leave the flag out"},
      {{.local_rank = 1},
       "--parallel.local_rank=1, but no launcher speaks in the environment and this is one process alone: wanted 0; "
       "start "
       "the ranks with torchrun"},
      {{.processes_per_node = 2}, "--parallel.processes_per_node=2, but no launcher speaks"},
  };
  for (const auto& [request, message] : table) {
    const std::string came = refusal({}, request);
    EXPECT_NE(came.find(message), std::string::npos) << came << "\nwanted " << message;
  }
  for (const char* master : {"nodeA", "nodeA:", ":29500", "nodeA:0", "nodeA:65536", "nodeA:x", "::1:29500", "[]:5"}) {
    EXPECT_NE(refusal({}, {.rank = 0, .world_size = 1, .master = master})
                  .find("--parallel.master=" + std::string(master) + ": wanted HOST:PORT, the host of rank 0"),
              std::string::npos);
  }
  EXPECT_NE(refusal(kSlurm, {.processes_per_node = 2}).find("--parallel.processes_per_node=2, but this is rank 5 of 8"),
            std::string::npos);
}

TEST(TopologyRefusal, ARankWithoutADeviceIsRefused) {
  EXPECT_EQ(
      refusal(kTorchrun, {.devices = 1}),
      "2: local rank 1 of 4 on this node (launched by torchrun), but 1 CUDA device(s) are visible: wanted one for "
      "each rank; start at most 1 processes a node, check CUDA_VISIBLE_DEVICES (with srun: --gpus-per-node instead "
      "of --gpus-per-task), or type --device=cpu");
  EXPECT_EQ(described(kTorchrun, {.devices = 2}), described(kTorchrun));
  EXPECT_NE(refusal({}, {.devices = 0}).find("but 0 CUDA device(s) are visible"), std::string::npos);
}

}  // namespace
}  // namespace limbeck::parallel
